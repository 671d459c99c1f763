//! What must be atomic in a partition's slot, as Lua: run by EVALSHA, loaded when the server doesn't have it. Ids and
//! totals stay below 2^53, so Lua's numbers hold them; holders are any 64 bits and stay text.
//!
//! Every write under a term begins with `fence`: a lower term writes nothing.
//!
//! While a slot of a cluster is moved, its old node answers to a key that it doesn't have, be it moved or never there, with
//! ASK or TRYAGAIN when the script declares the key, and inside the script with an error ("non local key"), which ends the
//! script where it is: what was written stays. So every script touches each key that it doesn't declare before its first
//! write, and none that it may have removed itself, be it by taking the last field of a hash, after that. Then that error
//! means: nothing was done, and `connection` may send the script again. A key that is declared and not needed only makes
//! the script wait for the end of the move.

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

/// A script that may use the library.
pub(super) fn script(body: &str) -> Script {
    Script::new(&[LIBRARY, body].concat())
}

/// Keys term, log, trimmed; argument holder.
pub(super) static TAKE_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(TAKE));
