//! What must be atomic about groups in a partition's slot, as Lua. See `scripts` for the library and for numbers.
//!
//! Fields of a cursor's hash: `up` done-up-to, `n` records there, `k` counts (began, filtered, acked, dead, dropped), `x` that it
//! is detached, `w` number of the last dead letter, `y` how many were dropped at the limits, `z` bytes of those kept, and one
//! for each open entry, named by its id.
//! An entry of a stream of dead letters has the entry in `e`, the index in `i`, times handed out in `d`, the record in `m`.

use std::sync::LazyLock;

use redis::Script;

use super::scripts::script;

const CURSORS: &str = r"
local trimmed = last_trimmed(KEYS[3])
local answer = { redis.call('HGET', KEYS[1], 'up') or '', trimmed.id, trimmed.r, trimmed.o }
for _, group in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  answer[#answer + 1] = group
  answer[#answer + 1] = redis.call('HGETALL', ARGV[1] .. group)
end
return answer
";

/// The last entry for which `early` holds; it holds for all before that. The search halves terms by the first entry of each,
/// then the sequences of one term, which are dense.
const SEARCH: &str = r"
local function last_such(log, early)
  local low, high = one('XRANGE', log, '-', '+'), one('XREVRANGE', log, '+', '-')
  if not low then return nil end
  local from, to, found = parse(low[1])[1], parse(high[1])[1], nil
  while from <= to do
    local middle = math.floor((from + to) / 2)
    local entry = one('XRANGE', log, text({ middle, 0 }), '+')
    if entry and early(entry) then
      found = entry
      from = parse(entry[1])[1] + 1
    else
      to = middle - 1
    end
  end
  if not found then return nil end
  local id = parse(found[1])
  local first = id[2] + 1
  local final = parse(one('XREVRANGE', log, '(' .. text({ id[1] + 1, 0 }), '-')[1])[2]
  while first <= final do
    local middle = math.floor((first + final) / 2)
    local entry = one('XRANGE', log, text({ id[1], middle }), '+')
    if entry and early(entry) then
      found = entry
      first = middle + 1
    else
      final = middle - 1
    end
  end
  return found
end
local function place(log, trimmed, kind, time)
  if kind == 'latest' then return last_stored(log, trimmed) end
  if kind == 'earliest' then return trimmed end
  local entry = last_such(log, function(entry) return tonumber(field(entry, 't')) < tonumber(time) end)
  if entry and tonumber(field(entry, 'n')) > 1 then
    entry = one('XREVRANGE', log, '(' .. entry[1], '-')
  end
  return entry and { id = entry[1], r = field(entry, 'r') } or trimmed
end
local function set_anew(cursor, start)
  redis.call('HSET', cursor, 'up', start.id, 'n', start.r, 'k', start.r .. ' 0 0 0 0')
end
";

const CREATE_CURSOR: &str = r"
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 1 then return 0 end
redis.call('SADD', KEYS[3], ARGV[1])
set_anew(KEYS[4], place(KEYS[1], last_trimmed(KEYS[2]), ARGV[2], ARGV[3]))
return 1
";

/// Removes what is open and keeps what is known of dead letters. The hash stays all the time: `up` is in it.
const SEEK: &str = r"
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
if redis.call('SISMEMBER', KEYS[4], ARGV[2]) == 0 then return 0 end
local start = place(KEYS[2], last_trimmed(KEYS[3]), ARGV[3], ARGV[4])
redis.call('HDEL', KEYS[5], 'x')
for _, name in ipairs(redis.call('HKEYS', KEYS[5])) do
  if string.find(name, '-', 1, true) then redis.call('HDEL', KEYS[5], name) end
end
set_anew(KEYS[5], start)
return 1
";

const DELETE_CURSOR: &str = r"
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
return 1
";

/// Arguments after the term and the limits of dead letters: `fan <id or empty>` or `group <name> <up> <n> <counts> <open>
/// <dead> (<id> <bytes>)… (<entry> <index> <times> <record>)…`, repeated. Keys after the term in the same order: the fan-out
/// cursor; or groups, cursor and, when there are dead letters, their stream. The fan-out cursor is written last: it may go.
const COMMIT: &str = r"
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local function is_done(cursor, up, id, index)
  if not below(up, parse(id)) then return true end
  local bits = redis.call('HGET', cursor, id)
  local byte = bits and string.byte(bits, 5 + math.floor(index / 8))
  return byte and math.floor(byte / 2 ^ (index % 8)) % 2 == 1
end
local function bury(cursor, stream, at)
  local last = number(number_after(redis.call('HGET', cursor, 'w')))
  redis.call('HSET', cursor, 'w', last)
  redis.call('XADD', stream, last .. '-0', 'e', ARGV[at], 'i', ARGV[at + 1], 'd', ARGV[at + 2], 'm', ARGV[at + 3])
  local bytes = redis.call('HINCRBY', cursor, 'z', #ARGV[at + 3])
  while redis.call('XLEN', stream) > tonumber(ARGV[2]) or bytes > tonumber(ARGV[3]) do
    local oldest = one('XRANGE', stream, '-', '+')
    redis.call('XDEL', stream, oldest[1])
    bytes = redis.call('HINCRBY', cursor, 'z', -#field(oldest, 'm'))
    redis.call('HINCRBY', cursor, 'y', 1)
  end
end
local function move(i, cursor, stream, open, dead)
  local up = parse(ARGV[i + 2])
  local stored = redis.call('HGET', cursor, 'up') or '0-0'
  for j = i + 7 + 2 * open, i + 3 + 2 * open + 4 * dead, 4 do
    if not is_done(cursor, parse(stored), ARGV[j], tonumber(ARGV[j + 1])) then
      bury(cursor, stream, j)
    end
  end
  redis.call('HSET', cursor, 'up', ARGV[i + 2], 'n', ARGV[i + 3], 'k', ARGV[i + 4])
  redis.call('HDEL', cursor, 'x')
  if stored ~= ARGV[i + 2] then
    for _, name in ipairs(redis.call('HKEYS', cursor)) do
      if string.find(name, '-', 1, true) and not below(up, parse(name)) then redis.call('HDEL', cursor, name) end
    end
  end
  for j = i + 7, i + 5 + 2 * open, 2 do
    if below(up, parse(ARGV[j])) then redis.call('HSET', cursor, ARGV[j], ARGV[j + 1]) end
  end
end
local i, k, fan, fan_up = 4, 2, nil, nil
while i <= #ARGV do
  if ARGV[i] == 'fan' then
    fan, fan_up = KEYS[k], ARGV[i + 1]
    i, k = i + 2, k + 1
  else
    local open, dead = tonumber(ARGV[i + 5]), tonumber(ARGV[i + 6])
    if redis.call('SISMEMBER', KEYS[k], ARGV[i + 1]) == 1 then move(i, KEYS[k + 1], KEYS[k + 2], open, dead) end
    i, k = i + 7 + 2 * open + 4 * dead, k + (dead > 0 and 3 or 2)
  end
end
if fan then
  if fan_up == '' then redis.call('DEL', fan) else redis.call('HSET', fan, 'up', fan_up) end
end
return 1
";

/// Three bounds move on: what all groups are done with; what must go for the log to keep within its bytes, up to the lowest
/// cursor of a group that blocks; what is too old. The highest of them counts, as far as the newest entries and the fan-out
/// allow. Cursors are known inside only: all are read before anything is written.
const TRIM: &str = r"
local log = KEYS[2]
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local trimmed = last_trimmed(KEYS[3])
local groups = redis.call('SMEMBERS', KEYS[5])
if #groups < tonumber(ARGV[3]) then return { trimmed.r, trimmed.o, trimmed.o, '0', '0' } end
local limit, since, yielding = tonumber(ARGV[4]), tonumber(ARGV[5]), {}
for i = 7, #ARGV, 2 do yielding[ARGV[i]] = ARGV[i + 1] end
local function lower(a, b)
  if not a or (b and below(b, a)) then return b end
  return a
end
local function higher(a, b)
  if not a or (b and below(a, b)) then return b end
  return a
end
local last, full, aged = last_stored(log, trimmed), nil, nil
if tonumber(last.o) - tonumber(trimmed.o) > limit then
  local goal = tonumber(last.o) - limit + math.floor(limit / 16)
  full = last_such(log, function(entry) return tonumber(field(entry, 'o')) - #field(entry, 'b') < goal end)
end
local first = one('XRANGE', log, '-', '+')
if first and tonumber(field(first, 't')) < since then
  aged = last_such(log, function(entry) return tonumber(field(entry, 't')) < since end)
end
full, aged = full and parse(full[1]), aged and parse(aged[1])
local done, records, floor, detaching = nil, nil, nil, {}
for _, group in ipairs(groups) do
  local cursor, policy = ARGV[6] .. group, yielding[group]
  local c = redis.call('HMGET', cursor, 'up', 'n', 'x')
  local up, detached = parse(c[1] or '0-0'), policy == 'detach' and c[3] == '1'
  if full and policy == 'detach' and not detached and below(up, full) then
    detaching[#detaching + 1] = cursor
    detached = true
  end
  if not detached and (not done or below(up, done)) then done, records = up, tonumber(c[2] or '0') end
  if not policy then floor = lower(floor, up) end
end
local fan = redis.call('HGET', KEYS[4], 'up')
fan = fan and parse(fan)
for _, cursor in ipairs(detaching) do redis.call('HSET', cursor, 'x', '1') end
local bound, lost, old = done, 0, '0'
if full then bound = higher(bound, lower(full, floor)) end
if aged and (not bound or below(bound, aged)) then bound, old = aged, '1' end
local entry, keep = one('XREVRANGE', log, '+', '-'), tonumber(ARGV[2])
while entry do
  local id = parse(entry[1])
  if keep <= id[2] then
    entry = one('XREVRANGE', log, text({ id[1], id[2] - keep }), '-')
    break
  end
  keep = keep - id[2]
  entry = one('XREVRANGE', log, '(' .. text({ id[1], 0 }), '-')
end
if entry and bound then
  bound = lower(lower(bound, parse(entry[1])), fan)
  local gone = one('XREVRANGE', log, text(bound), '-')
  if gone then
    local r, o = field(gone, 'r'), field(gone, 'o')
    if records then lost = math.max(0, tonumber(r) - math.max(tonumber(trimmed.r), records)) end
    redis.call('HSET', KEYS[3], 'id', gone[1], 'r', r, 'o', o)
    redis.call('XTRIM', log, 'MINID', '=', text({ bound[1], bound[2] + 1 }))
    trimmed = { id = gone[1], r = r, o = o }
  end
end
local stop, held = lower(floor, fan), ''
if stop then
  local before = one('XREVRANGE', log, text(stop), '-')
  held = before and field(before, 'o') or trimmed.o
end
return { trimmed.r, trimmed.o, held, number(lost), old }
";

const DELETE_DEAD: &str = r"
for _, id in ipairs(ARGV) do
  local entry = one('XRANGE', KEYS[2], id, id)
  if entry then
    redis.call('XDEL', KEYS[2], id)
    if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HINCRBY', KEYS[1], 'z', -#field(entry, 'm')) end
  end
end
return 1
";

fn searching(body: &str) -> Script {
    script(&[SEARCH, body].concat())
}

/// Keys fan, groups, trimmed; argument prefix of cursors.
pub(super) static CURSORS_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(CURSORS));
/// Keys log, trimmed, groups, cursor; arguments group, `latest` or `earliest` or `time`, milliseconds.
pub(super) static CREATE_CURSOR_SCRIPT: LazyLock<Script> = LazyLock::new(|| searching(CREATE_CURSOR));
/// Keys term, log, trimmed, groups, cursor; arguments term, group, as for the creation.
pub(super) static SEEK_SCRIPT: LazyLock<Script> = LazyLock::new(|| searching(SEEK));
/// Keys groups, cursor, dead letters; argument group.
pub(super) static DELETE_CURSOR_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(DELETE_CURSOR));
/// Keys term and those of the changes; arguments term, most dead letters and bytes, changes.
pub(super) static COMMIT_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(COMMIT));
/// Keys term, log, trimmed, fan, groups; arguments term, entries to keep, groups that are defined, bytes, milliseconds, prefix
/// of cursors, and each group that does not block with `drop` or `detach`.
pub(super) static TRIM_SCRIPT: LazyLock<Script> = LazyLock::new(|| searching(TRIM));
/// Keys cursor, dead letters; arguments ids.
pub(super) static DELETE_DEAD_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(DELETE_DEAD));
