//! What must be atomic in a partition's slot, as Lua: run by EVALSHA, loaded when the server doesn't have it. Ids and
//! totals stay below 2^53, so Lua's numbers hold them; holders are any 64 bits and stay text.
//!
//! Every write under a term begins with `fence`: a lower term writes nothing.

use std::sync::LazyLock;

use redis::Script;

/// Error code that scripts answer with when the term was taken by another.
pub(super) const FENCED: &str = "FENCED";

/// Functions that several scripts use.
const LIBRARY: &str = r"
local function parse(id)
  local term, sequence = string.match(id, '^(%d+)-(%d+)$')
  return { tonumber(term), tonumber(sequence) }
end
local function text(id)
  return string.format('%.0f-%.0f', id[1], id[2])
end
local function below(a, b)
  return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
end
local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
  return '0'
end
local function one(command, log, from, to)
  return redis.call(command, log, from, to, 'COUNT', 1)[1]
end
local function last_trimmed(key)
  local t = redis.call('HMGET', key, 'id', 'r', 'o')
  return { id = t[1] or '0-0', r = t[2] or '0', o = t[3] or '0' }
end
local function last_stored(log, trimmed)
  local entry = one('XREVRANGE', log, '+', '-')
  if not entry then return trimmed end
  return { id = entry[1], r = field(entry, 'r'), o = field(entry, 'o') }
end
local function number(value)
  return string.format('%.0f', value)
end
local function now_ms()
  local now = redis.call('TIME')
  return tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
end
local function number_after(last)
  return math.max(tonumber(last or '0') + 1, now_ms() * 1024)
end
-- A message is a field m, and, when it is a push, its time in x.
local function expiry(entry)
  return entry[2][3] == 'x' and tonumber(entry[2][4]) or nil
end
-- Removes all that is no push, or one whose time is over; the bytes of what stays.
local function keep_pushes(mailbox)
  local from, bytes, now = '-', 0, now_ms()
  while true do
    local page = redis.call('XRANGE', mailbox, from, '+', 'COUNT', 8)
    if #page == 0 then return bytes end
    for _, entry in ipairs(page) do
      local expires = expiry(entry)
      if expires and expires > now then
        bytes = bytes + #entry[2][2]
      else
        redis.call('XDEL', mailbox, entry[1])
      end
      from = '(' .. entry[1]
    end
  end
end
-- Life of a session, not shorter than that of the pushes that wait.
local function life(wanted, pushes)
  return number(math.max(tonumber(wanted), tonumber(pushes or '0') - now_ms() + 60000))
end
local function fence(key, term)
  local stored = redis.call('GET', key)
  return stored and string.match(stored, '^(%d+) ') == term
end
";

/// `XADD` refuses ids at or below the stream's last one: moving that to `<term>-0` fences every lower term off.
const TAKE: &str = r"
local log = KEYS[2]
local trimmed = last_trimmed(KEYS[3])
local term, holder = 1, ''
local stored = redis.call('GET', KEYS[1])
if stored then
  local t, h = string.match(stored, '^(%d+) (%d+)$')
  if not t then return redis.error_reply('CORRUPT the term is unreadable') end
  term, holder = tonumber(t) + 1, h
end
local now = redis.call('TIME')
term = math.max(term, tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000))
if redis.call('EXISTS', log) == 0 then
  redis.call('XGROUP', 'CREATE', log, 'p', '0-0', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', log, 'p')
else
  local info = redis.call('XINFO', 'STREAM', log)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then term = math.max(term, parse(info[i + 1])[1] + 1) end
  end
end
term = math.max(term, parse(trimmed.id)[1] + 1)
local last = last_stored(log, trimmed)
local written = string.format('%.0f', term)
redis.call('XSETID', log, written .. '-0')
redis.call('SET', KEYS[1], written .. ' ' .. ARGV[1])
return { written, holder, last.id, last.r, last.o, trimmed.r, trimmed.o }
";

const CURSORS: &str = r"
local answer = { redis.call('HGET', KEYS[1], 'up') or '' }
for _, group in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  answer[#answer + 1] = group
  answer[#answer + 1] = redis.call('HGETALL', ARGV[1] .. group)
end
return answer
";

/// The search halves terms by the first entry of each, then the sequences of one term, which are dense.
const CREATE_CURSOR: &str = r"
local log, groups, cursor = KEYS[1], KEYS[3], KEYS[4]
if redis.call('SISMEMBER', groups, ARGV[1]) == 1 then return 0 end
local trimmed = last_trimmed(KEYS[2])
local start = trimmed
local function early(entry)
  return tonumber(field(entry, 't')) < tonumber(ARGV[3])
end
local function last_early()
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
if ARGV[2] == 'latest' then
  start = last_stored(log, trimmed)
elseif ARGV[2] == 'time' then
  local entry = last_early()
  if entry and tonumber(field(entry, 'n')) > 1 then
    entry = one('XREVRANGE', log, '(' .. entry[1], '-')
  end
  if entry then start = { id = entry[1], r = field(entry, 'r') } end
end
redis.call('SADD', groups, ARGV[1])
redis.call('HSET', cursor, 'up', start.id, 'n', start.r)
return 1
";

const DELETE_CURSOR: &str = r"
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
return 1
";

/// Arguments after the term: `fan <id or empty>` or `group <name> <up> <n> <count> (<id> <bytes>)…`, repeated.
const COMMIT: &str = r"
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local i = 2
while i <= #ARGV do
  if ARGV[i] == 'fan' then
    if ARGV[i + 1] == '' then redis.call('DEL', KEYS[2]) else redis.call('HSET', KEYS[2], 'up', ARGV[i + 1]) end
    i = i + 2
  else
    local group, up, open = ARGV[i + 1], parse(ARGV[i + 2]), tonumber(ARGV[i + 4])
    if redis.call('SISMEMBER', KEYS[3], group) == 1 then
      local cursor = KEYS[4] .. group
      redis.call('HSET', cursor, 'up', ARGV[i + 2], 'n', ARGV[i + 3])
      for _, name in ipairs(redis.call('HKEYS', cursor)) do
        if name ~= 'up' and name ~= 'n' and not below(up, parse(name)) then redis.call('HDEL', cursor, name) end
      end
      for j = i + 5, i + 3 + 2 * open, 2 do
        if below(up, parse(ARGV[j])) then redis.call('HSET', cursor, ARGV[j], ARGV[j + 1]) end
      end
    end
    i = i + 5 + 2 * open
  end
end
return 1
";

/// The bound is the lowest cursor, and what `keep` leaves: counted down term by term, for sequences are dense.
const TRIM: &str = r"
local log = KEYS[2]
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local trimmed = last_trimmed(KEYS[3])
local groups = redis.call('SMEMBERS', KEYS[5])
if #groups < tonumber(ARGV[3]) then return { trimmed.r, trimmed.o } end
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
if not entry then return { trimmed.r, trimmed.o } end
local bound = parse(entry[1])
local function hold(up)
  if up then
    local id = parse(up)
    if below(id, bound) then bound = id end
  end
end
hold(redis.call('HGET', KEYS[4], 'up'))
for _, group in ipairs(groups) do
  hold(redis.call('HGET', KEYS[6] .. group, 'up') or '0-0')
end
local gone = one('XREVRANGE', log, text(bound), '-')
if not gone then return { trimmed.r, trimmed.o } end
local r, o = field(gone, 'r'), field(gone, 'o')
redis.call('HSET', KEYS[3], 'id', gone[1], 'r', r, 'o', o)
redis.call('XTRIM', log, 'MINID', '=', text({ bound[1], bound[2] + 1 }))
return { r, o }
";

/// A script that may use the library.
pub(super) fn script(body: &str) -> Script {
    Script::new(&[LIBRARY, body].concat())
}

/// Keys term, log, trimmed; argument holder.
pub(super) static TAKE_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(TAKE));
/// Keys fan, groups; argument prefix of cursors.
pub(super) static CURSORS_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(CURSORS));
/// Keys log, trimmed, groups, cursor; arguments group, `latest` or `earliest` or `time`, milliseconds.
pub(super) static CREATE_CURSOR_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(CREATE_CURSOR));
/// Keys groups, cursor; argument group.
pub(super) static DELETE_CURSOR_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(DELETE_CURSOR));
/// Keys term, fan, groups, prefix of cursors; arguments term, changes.
pub(super) static COMMIT_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(COMMIT));
/// Keys term, log, trimmed, fan, groups, prefix of cursors; arguments term, entries to keep, groups that are defined.
pub(super) static TRIM_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(TRIM));
