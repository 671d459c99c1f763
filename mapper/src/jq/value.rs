//! Values between JSON and the interpreter. Depth is bounded on both ways.

use jaq_json::{Num, Val};
use jaq_std::ValT as _;
use serde_json::{Number, Value};

/// Nesting of an output. JSON that is read has at most 128 levels.
const DEPTH: usize = 200;

/// As the interpreter takes it.
pub fn from_json(value: &Value) -> Val {
    match value {
        Value::Null => Val::Null,
        Value::Bool(on) => Val::from(*on),
        Value::Number(number) => number_in(number),
        Value::String(text) => Val::from(text.clone()),
        Value::Array(parts) => parts.iter().map(from_json).collect(),
        Value::Object(fields) => {
            Val::obj(fields.iter().map(|(key, value)| (Val::from(key.clone()), from_json(value))).collect())
        }
    }
}

fn number_in(number: &Number) -> Val {
    if let Some(whole) = number.as_i64() {
        return Val::Num(Num::from_integral(whole));
    }
    if let Some(whole) = number.as_u64() {
        return Val::Num(Num::from_integral(whole));
    }
    Val::from(number.as_f64().unwrap_or(f64::NAN))
}

/// As JSON, or what keeps it from being some.
pub fn to_json(value: &Val) -> Result<Value, &'static str> {
    within(value, DEPTH)
}

fn within(value: &Val, depth: usize) -> Result<Value, &'static str> {
    let deeper = depth.checked_sub(1).ok_or("it is nested too deeply")?;
    Ok(match value {
        Val::Null => Value::Null,
        Val::Bool(on) => Value::Bool(*on),
        Val::Num(number) => Value::Number(number_out(value, number)?),
        Val::TStr(text) => Value::String(String::from_utf8_lossy(text).into_owned()),
        Val::BStr(_) => return Err("a byte string"),
        Val::Arr(parts) => {
            Value::Array(parts.iter().map(|part| within(part, deeper)).collect::<Result<_, _>>()?)
        }
        Val::Obj(fields) => {
            let fields = fields.iter().map(|(key, value)| match key {
                Val::TStr(key) => Ok((String::from_utf8_lossy(key).into_owned(), within(value, deeper)?)),
                _ => Err("a key that is no text"),
            });
            Value::Object(fields.collect::<Result<_, _>>()?)
        }
    })
}

fn number_out(value: &Val, number: &Num) -> Result<Number, &'static str> {
    match number {
        Num::Int(whole) => Ok(Number::from(*whole as i64)),
        // What is beyond 64 bits is rounded, as every JSON reader would.
        Num::BigInt(whole) => match whole.to_string().parse::<u64>() {
            Ok(whole) => Ok(Number::from(whole)),
            Err(_) => rounded(value),
        },
        Num::Float(_) | Num::Dec(_) => rounded(value),
    }
}

fn rounded(value: &Val) -> Result<Number, &'static str> {
    value.as_f64().and_then(Number::from_f64).ok_or("a number that is not finite")
}
