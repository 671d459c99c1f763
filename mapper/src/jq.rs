//! jq programs: compiled once, with the place of every mistake; run on one value to a bounded number of outputs. A program
//! comes from the operator and is trusted to end; its input comes from devices and is not trusted at all.

mod natives;
mod value;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use jaq_core::{
    Compiler, Ctx, Filter, Vars,
    data::JustLut,
    load::{self, Arena, File, Loader},
};
pub use jaq_json::Val;

pub use self::value::{from_json, to_json};

/// Outputs of one run.
const OUTPUTS: usize = 1_000;
/// Characters of an error that are kept: it may show the whole input.
const ERROR_CHARS: usize = 300;
/// Functions for binary payloads.
const PRELUDE: &str = include_str!("jq/prelude.jq");

type Data = JustLut<Val>;

/// A compiled program. Cheap to run, from any thread.
pub struct Program {
    filter: Filter<Data>,
}

/// What a run failed of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JqError {
    /// The program says so, or did what can't be done.
    #[error("the jq program failed: {0}")]
    Failed(String),
    /// `halt`.
    #[error("the jq program called halt")]
    Halted,
    /// An output that is no JSON.
    #[error("an output of the jq program is not JSON: {0}")]
    NotJson(&'static str),
    /// More outputs than are taken.
    #[error("the jq program has more than {OUTPUTS} outputs")]
    TooMany,
    /// A defect of the interpreter.
    #[error("the jq interpreter panicked")]
    Panicked,
}

/// A mistake in a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.text)
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Program")
    }
}

impl Program {
    /// Compiles; tells all mistakes that can be told at once.
    pub fn compile(code: &str) -> Result<Self, Vec<Mistake>> {
        let own = load::parse(PRELUDE, |parser| parser.defs()).unwrap_or_default();
        let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs()).chain(own);
        let arena = Arena::default();
        let file = File { code, path: () };
        let modules = Loader::new(defs).load(&arena, file).map_err(|errors| not_parsed(code, errors))?;
        // The first native of a name counts.
        let funs = natives::own().chain(jaq_core::funs()).chain(jaq_std::funs()).chain(jaq_json::funs());
        let filter = Compiler::default().with_funs(funs).compile(modules);
        filter.map(|filter| Self { filter }).map_err(|errors| not_compiled(code, errors))
    }

    /// Runs on one value.
    pub fn run(&self, input: Val) -> Result<Vec<serde_json::Value>, JqError> {
        // What a device sends must not end the process, whatever it finds in the interpreter. Nothing is shared with a run.
        catch_unwind(AssertUnwindSafe(|| self.outputs(input))).unwrap_or(Err(JqError::Panicked))
    }

    fn outputs(&self, input: Val) -> Result<Vec<serde_json::Value>, JqError> {
        let context = Ctx::<Data>::new(&self.filter.lut, Vars::new([]));
        let mut outputs = Vec::new();
        for output in self.filter.id.run((context, input)) {
            if outputs.len() >= OUTPUTS {
                return Err(JqError::TooMany);
            }
            match output {
                Ok(value) => outputs.push(to_json(&value).map_err(JqError::NotJson)?),
                Err(exception) => return Err(failure(exception)),
            }
        }
        Ok(outputs)
    }
}

fn failure(exception: jaq_core::Exn<'_, Val>) -> JqError {
    match exception.get_err() {
        Ok(error) => {
            let text = match error.into_val() {
                Val::TStr(text) => String::from_utf8_lossy(&text).into_owned(),
                value => value.to_string(),
            };
            JqError::Failed(text.chars().take(ERROR_CHARS).collect())
        }
        Err(_) => JqError::Halted,
    }
}

/// Where `part`, a slice of `code`, is. What is no slice of it is at its end.
fn place(code: &str, part: &str, text: String) -> Mistake {
    let offset = (part.as_ptr() as usize).checked_sub(code.as_ptr() as usize);
    let before = offset.and_then(|offset| code.get(..offset)).unwrap_or(code);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Mistake { line, column, text }
}

fn found(part: &str) -> String {
    let word: String = part.chars().take_while(|c| !c.is_whitespace()).take(20).collect();
    if word.is_empty() { "the end".to_owned() } else { format!("{word:?}") }
}

fn not_parsed(code: &str, errors: load::Errors<&str, ()>) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (_, error) in errors {
        match error {
            load::Error::Io(paths) => {
                mistakes.extend(paths.iter().map(|(path, _)| {
                    place(code, path, "modules can't be imported: write the functions here".to_owned())
                }));
            }
            load::Error::Lex(errors) => mistakes.extend(errors.iter().map(|(expected, part)| {
                place(code, part, format!("expected {}, found {}", expected.as_str(), found(part)))
            })),
            load::Error::Parse(errors) => mistakes.extend(errors.iter().map(|(expected, part)| {
                place(code, part, format!("expected {}, found {}", expected.as_str(), found(part)))
            })),
        }
    }
    mistakes
}

fn not_compiled(code: &str, errors: jaq_core::compile::Errors<&str, ()>) -> Vec<Mistake> {
    let all = errors.into_iter().flat_map(|(_, errors)| errors);
    all.map(|(name, undefined)| place(code, name, format!("there is no {} {name}", undefined.as_str())))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn run(code: &str, input: Value) -> Result<Vec<Value>, JqError> {
        Program::compile(code).unwrap().run(from_json(&input))
    }

    fn one(code: &str, input: Value) -> Value {
        let mut outputs = run(code, input).unwrap();
        assert_eq!(outputs.len(), 1, "{outputs:?}");
        outputs.remove(0)
    }

    #[test]
    fn values_pass_through_unchanged() {
        let input = json!({"a": [1, -2, 2.5, 1e300, true, null, "é\u{0}"], "b": {"": 9007199254740993_u64, "c": u64::MAX}});
        assert_eq!(one(".", input.clone()), input);
        assert_eq!(one("[.[] | . * 2]", json!([1, 2])), json!([2, 4]));
    }

    #[test]
    fn mistakes_have_places() {
        let told = |code: &str| {
            Program::compile(code).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told("{a: 1,\n b: nosuch(.x)}"), ["line 2, column 5: there is no filter nosuch"]);
        assert_eq!(
            told("a | $b"),
            ["line 1, column 1: there is no filter a", "line 1, column 5: there is no variable $b"]
        );
        assert_eq!(told(".a\n| if . then 1").len(), 1);
        assert_eq!(told(".a +"), ["line 1, column 5: expected term, found the end"]);
        assert_eq!(told(".a | \"x"), ["line 1, column 8: expected closing quote, found the end"]);
        assert!(told("import \"x\" as x; .")[0].contains("can't be imported"));
        assert!(!told("$ENV").is_empty(), "nothing of the environment is given to programs");
    }

    #[test]
    fn runs_are_bounded_and_fail_as_values() {
        assert_eq!(run("range(2000)", Value::Null), Err(JqError::TooMany));
        assert_eq!(run("error(\"no unit\")", Value::Null), Err(JqError::Failed("no unit".into())));
        assert_eq!(run("halt", Value::Null), Err(JqError::Halted));
        assert_eq!(run("nan", Value::Null), Err(JqError::NotJson("a number that is not finite")));
        let Err(JqError::Failed(text)) = run(". + 1", json!("x".repeat(10_000))) else { panic!("it fails") };
        assert_eq!(text.chars().count(), ERROR_CHARS);
        assert_eq!(run("env", Value::Null).unwrap(), [json!({})]);
    }

    #[test]
    fn nested_text_of_a_device_does_not_end_the_process() {
        let deep = "[".repeat(200_000);
        assert!(matches!(run("fromjson", json!(deep)), Err(JqError::Failed(_))));
        assert_eq!(one("fromjson", json!("{\"a\": [1]}")), json!({"a": [1]}));
        assert_eq!(run("fromjson", json!("1 2")).unwrap(), [json!(1), json!(2)]);
    }

    #[test]
    fn binary_payloads_are_read_by_place() {
        let bytes =
            json!([0x01, 0xff, 0xfe, 0x41, 0xc8, 0x00, 0x00, 0x40, 0x09, 0x21, 0xfb, 0x54, 0x44, 0x2d, 0x18]);
        assert_eq!(
            one("[u8(0), u8(1), i8(1), u16be(1), i16be(1), u16le(1), i16le(1)]", bytes.clone()),
            json!([1, 255, -1, 65_534, -2, 65_279, -257])
        );
        assert_eq!(
            one("[u32be(3), i32be(3), f32be(3)]", bytes.clone()),
            json!([1_103_626_240, 1_103_626_240, 25.0])
        );
        assert_eq!(one("f64be(7)", bytes.clone()), json!(std::f64::consts::PI));
        assert_eq!(
            one("[u32le(0), i32le(0), f32le(0)]", json!([0, 0, 0x48, 0xc1])),
            json!([3_242_721_280_u32, -1_052_246_016, -12.5])
        );
        assert_eq!(
            one("f64le(0)", json!([0x18, 0x2d, 0x44, 0x54, 0xfb, 0x21, 0x09, 0x40])),
            json!(std::f64::consts::PI)
        );
        assert_eq!(
            one("[f32be(0), f32be(4)]", json!([0x80, 0, 0, 0, 0, 0, 0, 1])),
            json!([-0.0, 1.401298464324817e-45])
        );
        assert_eq!(one("f32be(0)", json!([0x7f, 0xc0, 0, 0])), Value::Null, "not a number");
        assert_eq!(
            run("u16be(1)", json!([1, 2])),
            Err(JqError::Failed("the payload has 2 bytes, not 3".into()))
        );
    }
}
