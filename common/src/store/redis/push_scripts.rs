//! Pushes that wait and keys of pushes, as Lua. See `session_scripts` for the hash of a client and its mailbox.
//!
//! A key is a field of the hash of its time (a stretch of [`KEYS_KEPT_MS`], the key's name ends with its number), its value
//! `<fingerprint> <outcome>`; it is looked for in the present stretch and the one before.
//!
//! [`KEYS_KEPT_MS`]: crate::store::KEYS_KEPT_MS

use std::sync::LazyLock;

use redis::Script;

use super::scripts::script;

const KEYS: &str = r"
-- The hash for new keys, and the one before. Their names are the server's time: callers can't declare them.
local function stretches(prefix)
  local stretch = math.floor(now_ms() / 600000)
  return prefix .. number(stretch), prefix .. number(stretch - 1)
end
-- nil: it is new, there is room for it, and both hashes were touched.
local function look_up(prefix, name, print, most)
  local present, before = stretches(prefix)
  local known = redis.call('HGET', present, name) or redis.call('HGET', before, name)
  if not known then
    if redis.call('HLEN', present) >= tonumber(most) then return { 'keys', '' }, present end
    return nil, present
  end
  local own, outcome = string.match(known, '^(%S+) (.*)$')
  if own ~= print then return { 'used', '' }, present end
  return { 'again', outcome }, present
end
local function remember(present, name, print, outcome)
  redis.call('HSET', present, name, print .. ' ' .. outcome)
  redis.call('PEXPIRE', present, 1200000)
end
";

/// When the mailbox is full, pushes at its front whose time is over make room.
const QUEUE: &str = r"
local session, mailbox, waiting = KEYS[2], KEYS[3], KEYS[4]
local record, name, print = ARGV[3], ARGV[8], ARGV[9]
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local answer, present
if name ~= '' then
  answer, present = look_up(ARGV[7], name, print, ARGV[10])
  if answer then return answer end
end
local now, most, most_bytes = now_ms(), tonumber(ARGV[5]), tonumber(ARGV[6])
local found = redis.call('HMGET', session, 'q', 'b', 'u', 'l')
local length, bytes = redis.call('XLEN', mailbox), tonumber(found[2] or '0')
local function full()
  return length + 1 > most or bytes + #record > most_bytes
end
if full() then
  local up_to = number(tonumber(found[3] or '0'))
  for _, entry in ipairs(redis.call('XRANGE', mailbox, '(' .. up_to .. '-0', '+', 'COUNT', 32)) do
    local expires = expiry(entry)
    if expires and expires <= now then
      redis.call('XDEL', mailbox, entry[1])
      length, bytes = length - 1, bytes - #entry[2][2]
    end
  end
end
if full() then return { 'full', '' } end
local n, expires = number(number_after(found[1])), number(now + tonumber(ARGV[4]))
local latest = number(math.max(tonumber(found[4] or '0'), tonumber(expires)))
redis.call('XADD', mailbox, n .. '-0', 'm', record, 'x', expires)
redis.call('HSET', session, 'q', n, 'b', number(bytes + #record), 'l', latest)
local lives = tonumber(life('0', latest))
for _, key in ipairs({ session, mailbox }) do
  if redis.call('PTTL', key) < lives then redis.call('PEXPIRE', key, lives) end
end
redis.call('ZADD', waiting, 'GT', expires, ARGV[2])
if present then remember(present, name, print, 'queued ' .. n .. ' ' .. expires) end
return { 'stored', n .. ' ' .. expires }
";

const STEP: &str = r"
local session, mailbox = KEYS[2], KEYS[3]
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local found = redis.call('HMGET', session, 'i', 'b')
if found[1] then return redis.error_reply('GONE the client has a session') end
local bytes, now, most = tonumber(found[2] or '0'), now_ms(), tonumber(ARGV[4])
local function remove(entry)
  bytes = bytes - #entry[2][2]
  redis.call('XDEL', mailbox, entry[1])
end
for n in string.gmatch(ARGV[5], '%d+') do
  local entry = redis.call('XRANGE', mailbox, n .. '-0', n .. '-0')[1]
  if entry then remove(entry) end
end
local out, given, more, expired, from = {}, 0, 0, 0, ARGV[2]
local ended = most == 0
while not ended do
  local page = redis.call('XRANGE', mailbox, '(' .. from .. '-0', '+', 'COUNT', 8)
  if #page == 0 then ended = true end
  for _, entry in ipairs(page) do
    local n, size, expires = string.match(entry[1], '^%d+'), #entry[2][2], expiry(entry)
    local over = not expires or expires <= now
    if over and expired < 256 then
      remove(entry)
      expired = expired + 1
    elseif over or #out >= most or (#out > 0 and given + size > tonumber(ARGV[3])) then
      more, ended = 1, true
      break
    else
      given = given + size
      out[#out + 1] = { n, '0', '0', entry[2][2] }
    end
    from = n
  end
end
if redis.call('EXISTS', session) == 1 then redis.call('HSET', session, 'b', number(bytes)) end
if redis.call('XLEN', mailbox) == 0 then redis.call('DEL', mailbox) end
return { more, expired, out }
";

/// Keys of the clients are known inside only: all are touched before anything is written.
const EXPIRE: &str = r"
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', number(now_ms()), 'LIMIT', 0, 128)
for _, client in ipairs(over) do
  redis.call('EXISTS', ARGV[2] .. client)
  redis.call('EXISTS', ARGV[3] .. client)
end
local gone, expired = {}, 0
for _, client in ipairs(over) do
  local session, mailbox = ARGV[2] .. client, ARGV[3] .. client
  if redis.call('HEXISTS', session, 'i') == 0 then
    expired = expired + redis.call('XLEN', mailbox)
    redis.call('DEL', mailbox)
    if redis.call('EXISTS', session) == 1 then redis.call('HSET', session, 'b', '0') end
  end
  redis.call('ZREM', KEYS[2], client)
  gone[#gone + 1] = client
end
return { expired, gone }
";

const BEGIN: &str = r"
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local answer, present = look_up(ARGV[2], ARGV[3], ARGV[4], ARGV[5])
if answer then return answer end
remember(present, ARGV[3], ARGV[4], '')
return { 'stored', '' }
";

/// What the present hash says counts, so an outcome is written there and the one before stays as it is. A key without an
/// outcome is in one of the two, where it was begun. PEXPIRE comes first for a server that is out of memory: it refuses what
/// takes memory as the first write of a script only.
const END: &str = r"
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local present, before = stretches(ARGV[2])
if ARGV[5] == '1' then
  redis.call('PEXPIRE', present, 1200000)
  remember(present, ARGV[3], ARGV[4], ARGV[6])
elseif redis.call('HDEL', present, ARGV[3]) == 0 then
  redis.call('HDEL', before, ARGV[3])
end
return 0
";

fn with_keys(text: &str) -> Script {
    script(&[KEYS, text].concat())
}

/// Keys term, session, mailbox, waiting; arguments term, client, record, life, most messages, most bytes, hashes of keys, key
/// or nothing, fingerprint, most keys.
pub(super) static QUEUE_SCRIPT: LazyLock<Script> = LazyLock::new(|| with_keys(QUEUE));
/// Keys term, session, mailbox; arguments term, received, bytes, messages, acknowledged.
pub(super) static STEP_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(STEP));
/// Keys term, waiting; arguments term, what comes before a client in keys of sessions, and of mailboxes.
pub(super) static EXPIRE_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(EXPIRE));
/// Keys term; arguments term, hashes of keys, key, fingerprint, most keys.
pub(super) static BEGIN_SCRIPT: LazyLock<Script> = LazyLock::new(|| with_keys(BEGIN));
/// Keys term; arguments term, hashes of keys, key, fingerprint, whether there is an outcome, outcome.
pub(super) static END_SCRIPT: LazyLock<Script> = LazyLock::new(|| with_keys(END));
