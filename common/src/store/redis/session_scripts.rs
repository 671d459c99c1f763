//! What must be atomic in a client's slot and in a tenant's, as Lua. See `scripts` for the library and for numbers.
//!
//! Fields of a session's hash: `i` incarnation (without it there is no session), `e` epoch of the connection that opened it,
//! `v` version of its filters, `w` filters, `q` last number of mail, `b` bytes of the mailbox, `s` what was handed out and
//! not acknowledged (`<number>:<packet id>`, blanks between), `u` number up to which everything was handed out, `l` when the
//! time of the last push is over, and `f<partition>` the last entry of that partition that was looked at.

use std::sync::LazyLock;

use redis::Script;

use super::scripts::script;

/// Error code when the session is another connection's, or none.
pub(super) const GONE: &str = "GONE";

const OPEN: &str = r"
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local found = redis.call('HMGET', KEYS[2], 'i', 'v', 'w', 's', 'l')
local lives = life(ARGV[3], found[5])
-- Made by this very connection: its question has come again.
local present = (found[1] and found[1] ~= ARGV[2]) and 1 or 0
if not found[1] then
  redis.call('HDEL', KEYS[2], 'w', 's', 'u')
  local version = number(number_after(found[2]))
  redis.call('HSET', KEYS[2], 'i', ARGV[2], 'b', number(keep_pushes(KEYS[3])), 'v', version)
  found = { ARGV[2], version, false, false }
end
redis.call('HSET', KEYS[2], 'e', ARGV[2])
redis.call('PEXPIRE', KEYS[2], lives)
redis.call('PEXPIRE', KEYS[3], lives)
return { present, found[1], found[2], found[3] or '', found[4] or '' }
";

const WIPE: &str = r"
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local found = redis.call('HMGET', KEYS[2], 'i', 'l')
local incarnation = found[1]
if not incarnation then return '' end
redis.call('HDEL', KEYS[2], 'i', 'e', 'w', 's', 'u')
redis.call('HSET', KEYS[2], 'b', number(keep_pushes(KEYS[3])))
local lives = life(ARGV[2], found[2])
redis.call('PEXPIRE', KEYS[2], lives)
if redis.call('XLEN', KEYS[3]) == 0 then redis.call('DEL', KEYS[3]) else redis.call('PEXPIRE', KEYS[3], lives) end
return incarnation
";

const SET_FILTERS: &str = r"
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local found = redis.call('HMGET', KEYS[2], 'i', 'e', 'v')
if not found[1] or found[2] ~= ARGV[2] then return redis.error_reply('GONE the session is gone') end
local version = number(number_after(found[3]))
redis.call('HSET', KEYS[2], 'v', version, 'w', ARGV[3])
return { found[1], version }
";

/// Arguments after the limits: `<entry id> <record>`, repeated. All mail of an entry is in one call.
const APPEND: &str = r"
local session, mailbox, source = KEYS[1], KEYS[2], 'f' .. ARGV[2]
local found = redis.call('HMGET', session, 'i', source, 'q', 'b')
if found[1] ~= ARGV[1] then return { 'gone', 0, 0 } end
local seen, last, bytes = parse(found[2] or '0-0'), found[3], tonumber(found[4] or '0')
local length, appended, dropped, latest = redis.call('XLEN', mailbox), 0, 0, nil
for i = 5, #ARGV, 2 do
  local size = #ARGV[i + 1]
  if below(seen, parse(ARGV[i])) then
    latest = ARGV[i]
    if length + 1 > tonumber(ARGV[3]) or bytes + size > tonumber(ARGV[4]) then
      dropped = dropped + 1
    else
      last = number(number_after(last))
      redis.call('XADD', mailbox, last .. '-0', 'm', ARGV[i + 1])
      length, bytes, appended = length + 1, bytes + size, appended + 1
    end
  end
end
if latest then
  redis.call('HSET', session, source, latest, 'q', last or '0', 'b', number(bytes))
  local life = redis.call('PTTL', session)
  if life > 0 then redis.call('PEXPIRE', mailbox, life) end
end
return { 'kept', appended, dropped }
";

/// Reads few entries at a time: each may be as large as a packet.
const STEP: &str = r"
local session, mailbox = KEYS[2], KEYS[3]
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local found = redis.call('HMGET', session, 'i', 'e', 's', 'u', 'b', 'l')
if not found[1] or found[2] ~= ARGV[2] then return redis.error_reply('GONE the session is gone') end
local age, received, most = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local up_to, bytes = tonumber(found[4] or '0'), tonumber(found[5] or '0')
local function at(n)
  return redis.call('XRANGE', mailbox, n .. '-0', n .. '-0')[1]
end
local function remove(entry)
  bytes = bytes - #entry[2][2]
  redis.call('XDEL', mailbox, entry[1])
end
local acked, sent, used = {}, {}, {}
for n in string.gmatch(ARGV[7], '%d+') do acked[n] = true end
for n, id in string.gmatch(found[3] or '', '(%d+):(%d+)') do
  if acked[n] then
    local entry = at(n)
    if entry then remove(entry) end
  else
    sent[#sent + 1] = { n, id }
    used[id] = true
  end
end
local out, given, more, expired, kept = {}, 0, 0, 0, {}
local function give(entry, n, id, again)
  local size = #entry[2][2]
  if #out > 0 and given + size > most then
    more = 1
    return false
  end
  given = given + size
  out[#out + 1] = { n, id, again, entry[2][2] }
  return true
end
for _, one in ipairs(sent) do
  local lost = false
  if more == 0 and tonumber(one[1]) > received then
    local entry = at(one[1])
    if entry then give(entry, one[1], one[2], '1') else lost = true end
  end
  if not lost then kept[#kept + 1] = one[1] .. ':' .. one[2] end
end
local ids, used_ids, ended = {}, 0, more == 1
for id in string.gmatch(ARGV[8], '%d+') do
  if not used[id] then ids[#ids + 1] = id end
end
local now = now_ms()
local oldest = (now - age) * 1024
while not ended do
  local page = redis.call('XRANGE', mailbox, '(' .. number(up_to) .. '-0', '+', 'COUNT', 8)
  if #page == 0 then ended = true end
  for _, entry in ipairs(page) do
    local n = string.match(entry[1], '^%d+')
    local expires = expiry(entry)
    local over = expires and expires <= now or not expires and tonumber(n) < oldest
    if over and expired < 256 then
      remove(entry)
      expired = expired + 1
    elseif over or used_ids == #ids then
      more, ended = 1, true
    elseif give(entry, n, ids[used_ids + 1], '0') then
      used_ids = used_ids + 1
      kept[#kept + 1] = n .. ':' .. ids[used_ids]
    else
      ended = true
    end
    if ended then break end
    up_to = tonumber(n)
  end
end
redis.call('HSET', session, 's', table.concat(kept, ' '), 'u', number(up_to), 'b', number(bytes))
local lives = life(ARGV[3], found[6])
redis.call('PEXPIRE', session, lives)
if redis.call('XLEN', mailbox) == 0 then redis.call('DEL', mailbox) else redis.call('PEXPIRE', mailbox, lives) end
return { more, expired, out }
";

const STATE: &str = r"
local found = redis.call('HMGET', KEYS[1], 'i', 'v', 'w', 's', 'b')
if not found[1] then return {} end
local first = one('XRANGE', KEYS[2], '-', '+')
local oldest = first and string.match(first[1], '^%d+') or '0'
return { found[1], found[2], found[3] or '', found[4] or '', found[5] or '0', redis.call('XLEN', KEYS[2]), oldest,
  math.max(redis.call('PTTL', KEYS[1]), 0) }
";

/// A value is `<incarnation> <version> <filters>`.
const PUBLISH: &str = r"
local last = redis.call('HGET', KEYS[1], '#') or '0'
local old = redis.call('HGET', KEYS[1], ARGV[1])
local value = ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. ARGV[4]
if old then
  if old == value then return last end
  if tonumber(string.match(old, '^%d+ (%d+) ')) > tonumber(ARGV[3]) then return last end
end
local change = number(number_after(last))
redis.call('HSET', KEYS[1], ARGV[1], value, '#', change)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], change .. '-0', 'p', last, 'c', ARGV[1], 'w', value)
return change
";

const WITHDRAW: &str = r"
local last = redis.call('HGET', KEYS[1], '#') or '0'
local old = redis.call('HGET', KEYS[1], ARGV[1])
if not old or string.match(old, '^%d+') ~= ARGV[2] then return last end
local change = number(number_after(last))
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], '#', change)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], change .. '-0', 'p', last, 'c', ARGV[1], 'w', '')
return change
";

/// The last number, and the changes after one, if they follow on it.
const CHANGES: &str = r"
local last, before = redis.call('HGET', KEYS[1], '#') or '0', ARGV[1]
local answer = { last }
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '(' .. before .. '-0', '+')) do
  if field(entry, 'p') ~= before then return { last, 'gap' } end
  before = string.match(entry[1], '^%d+')
  answer[#answer + 1] = field(entry, 'c')
  answer[#answer + 1] = field(entry, 'w')
end
if before ~= last then return { last, 'gap' } end
return answer
";

/// Keys term, session, mailbox; arguments term, epoch, life.
pub(super) static OPEN_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(OPEN));
/// Keys term, session, mailbox; arguments term, life of what stays.
pub(super) static WIPE_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(WIPE));
/// Keys term, session; arguments term, epoch, filters.
pub(super) static SET_FILTERS_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(SET_FILTERS));
/// Keys session, mailbox; arguments incarnation, source, most messages, most bytes, mail.
pub(super) static APPEND_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(APPEND));
/// Keys term, session, mailbox; arguments term, epoch, life, age, received, bytes, acknowledged, packet ids.
pub(super) static STEP_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(STEP));
/// Keys session, mailbox.
pub(super) static STATE_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(STATE));
/// Keys filters, log; arguments client, incarnation, version, filters, changes to keep.
pub(super) static PUBLISH_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(PUBLISH));
/// Keys filters, log; arguments client, incarnation, changes to keep.
pub(super) static WITHDRAW_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(WITHDRAW));
/// Keys filters, log; argument number.
pub(super) static CHANGES_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(CHANGES));
