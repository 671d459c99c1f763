//! Functions that replace the interpreter's own: those could be used by a device against the process, or show secrets.

use jaq_core::{
    Error, Exn, RunPtr,
    box_iter::box_once,
    native::{self, Filter, Fun, v},
};
use jaq_json::Val;
use jaq_std::ValT as _;

use super::{Data, value::from_json};

/// In front of all others.
pub(super) fn own() -> impl Iterator<Item = Fun<Data>> {
    let own: [Filter<RunPtr<Data>>; 2] = [
        // The interpreter's own parses without a limit of depth: nested brackets of a device would overflow the stack.
        ("fromjson", v(0), |cv| match parse(&cv.1) {
            Ok(values) => Box::new(values.into_iter().map(Ok)),
            Err(error) => box_once(Err(Exn::from(error))),
        }),
        // Passwords are in the environment.
        ("env", v(0), |_| box_once(Ok(Val::obj(jaq_json::Map::default())))),
    ];
    own.into_iter().map(|fun| native::run::<Data>(fun))
}

fn parse(text: &Val) -> Result<Vec<Val>, Error<Val>> {
    let bytes = text.as_utf8_bytes().ok_or_else(|| Error::str("only a text can be parsed as JSON"))?;
    let values = serde_json::Deserializer::from_slice(bytes).into_iter::<serde_json::Value>();
    let parsed = values.map(|value| value.map(|value| from_json(&value)));
    parsed.collect::<Result<_, _>>().map_err(|error| Error::str(format!("cannot parse as JSON: {error}")))
}
