//! Wills: one hash a partition, in the slot of its log. What fires is appended and removed by one script.

use std::sync::LazyLock;

use redis::Script;

use super::{
    answers,
    connection::{Failure, Server, Way},
    keys::Keys,
    log,
    scripts::script,
};
use crate::{
    epoch::Epoch,
    name::PartitionKey,
    position::Term,
    store::{AppendError, ChangedWills, HeldWill, StoreError, Totals, WillChange, WillChanges},
};

/// Wills that one page of HSCAN is asked for.
const PAGE: usize = 256;

/// Arguments after the totals: `<keep|fire|drop> <client> <epoch> <value to keep>`, repeated. The append is the first write:
/// a server that is out of memory refuses that one, and only that.
const CHANGE: &str = r"
if not fence(KEYS[1], ARGV[1]) then return redis.error_reply('FENCED the term was taken') end
local log, wills, suffix = KEYS[2], KEYS[3], ARGV[2]
local function varint(n)
  local bytes = {}
  while n >= 128 do
    bytes[#bytes + 1] = string.char(n % 128 + 128)
    n = math.floor(n / 128)
  end
  return table.concat(bytes) .. string.char(n)
end
local known, changed, frames, fired = {}, {}, {}, {}
for i = 6, #ARGV, 4 do
  local client, held, fires = ARGV[i + 1], nil, 0
  held = known[client]
  if held == nil then held = redis.call('HGET', wills, client) end
  if ARGV[i] == 'keep' then
    held, changed[client] = ARGV[i + 3], true
  elseif held and string.match(held, '^%d+') == ARGV[i + 2] then
    if ARGV[i] == 'fire' then
      local _, to = string.find(held, '^%d+ %d+ ')
      local body = string.sub(held, to + 1) .. suffix
      frames[#frames + 1] = string.char(10) .. varint(#body) .. body
      fires = 1
    end
    held, changed[client] = false, true
  end
  known[client] = held
  fired[#fired + 1] = fires
end
local id, r, o = '', ARGV[4], ARGV[5]
if #frames > 0 then
  local b = table.concat(frames)
  r, o = number(tonumber(r) + #frames), number(tonumber(o) + #b)
  id = redis.call('XADD', log, 'NOMKSTREAM', ARGV[1] .. '-*', 'b', b, 's', '', 'n', number(#frames), 't', ARGV[3], 'r', r, 'o', o)
  if not id then return redis.error_reply('FENCED the log is gone') end
end
-- What stays first, and nothing after the last one that goes: see `scripts` about slots on the move.
for client, _ in pairs(changed) do
  if known[client] then redis.call('HSET', wills, client, known[client]) end
end
local left = redis.call('HLEN', wills)
for client, _ in pairs(changed) do
  if not known[client] and left > 0 then left = left - redis.call('HDEL', wills, client) end
end
return { id, r, o, fired }
";

/// Client, epoch, gateway and bytes of each; never the records.
const PAGE_OF: &str = r"
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local answer = { page[1] }
for i = 1, #page[2], 2 do
  local value = page[2][i + 1]
  local epoch, gateway, at = string.match(value, '^(%d+) (%d+) ()')
  answer[#answer + 1] = { page[2][i], epoch or '', gateway or '', number(#value - (at or 1) + 1) }
end
return answer
";

/// Keys term, log, wills; arguments term, suffix, milliseconds, records and bytes before, changes.
static CHANGE_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(CHANGE));
/// Key wills; arguments place, count.
static PAGE_SCRIPT: LazyLock<Script> = LazyLock::new(|| script(PAGE_OF));

pub(super) async fn change(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    changes: &WillChanges,
) -> Result<ChangedWills, AppendError> {
    let keys = Keys::new(partition);
    let mut script = CHANGE_SCRIPT.key(keys.term());
    script.key(keys.log()).key(keys.wills()).arg(term.0).arg(&changes.suffix[..]).arg(changes.received_at);
    script.arg(changes.before.records).arg(changes.before.bytes);
    for change in &changes.changes {
        match change {
            WillChange::Keep { client, epoch, gateway, record } => {
                let mut value = format!("{} {gateway} ", epoch.0).into_bytes();
                value.extend_from_slice(record);
                script.arg("keep").arg(&client[..]).arg(epoch.0).arg(value);
            }
            WillChange::Fire { client, epoch } => {
                script.arg("fire").arg(&client[..]).arg(epoch.0).arg("");
            }
            WillChange::Drop { client, epoch } => {
                script.arg("drop").arg(&client[..]).arg(epoch.0).arg("");
            }
        }
    }
    let (_, live) = log::held(server, partition, term)?;
    let answer = match server.run_there(&live, &script).await {
        Err(Failure::Refused { code, text }) => return Err(log::not_appended(server, &code, text)),
        answer => answer?,
    };
    // What was done and can't be read is in doubt.
    changed(answer).map_err(|error| AppendError::Lost(error.to_string()))
}

fn changed(answer: redis::Value) -> Result<ChangedWills, StoreError> {
    let [id, records, bytes, fired] = answers::fixed(answer)?;
    let totals = Totals { records: answers::number(records)?, bytes: answers::number(bytes)? };
    let id = answers::text(id)?;
    let entry = match id.as_str() {
        "" => None,
        id => Some((id.parse().map_err(|_| answers::corrupt("an answer is no entry id"))?, totals)),
    };
    let fired = answers::array(fired)?.into_iter().map(|one| Ok(answers::number(one)? == 1));
    Ok(ChangedWills { fired: fired.collect::<Result<_, StoreError>>()?, entry })
}

pub(super) async fn all(server: &Server, partition: &PartitionKey) -> Result<Vec<HeldWill>, StoreError> {
    let (key, mut place, mut held) = (Keys::new(partition).wills(), "0".to_owned(), Vec::new());
    let mut asked = None;
    loop {
        let mut script = PAGE_SCRIPT.key(&key);
        script.arg(&place).arg(PAGE);
        let (page, live) = server.run_stored(&script).await?;
        // Places are one server's own: on another one the scan would miss some.
        if *asked.get_or_insert(live) != live {
            return Err(StoreError::Unavailable("the connection changed while wills were read".into()));
        }
        let mut answer = answers::array(page)?.into_iter();
        place = answers::text(answer.next().ok_or_else(|| answers::corrupt("a page without its end"))?)?;
        for one in answer {
            let [client, epoch, gateway, bytes] = answers::fixed(one)?;
            held.push(HeldWill {
                client: answers::bytes(client)?.into(),
                epoch: Epoch(answers::number(epoch)?),
                gateway: answers::number(gateway)?,
                bytes: usize::try_from(answers::number(bytes)?).unwrap_or(usize::MAX),
            });
        }
        if place == "0" {
            return Ok(held);
        }
    }
}

pub(super) async fn any(server: &Server, partition: &PartitionKey) -> Result<bool, StoreError> {
    let mut exists = redis::cmd("EXISTS");
    exists.arg(Keys::new(partition).wills());
    Ok(answers::number(server.send(Way::Read, &exists).await?)? > 0)
}
