//! The functions and filters that templates expect of Hugging Face's transformers.

use super::date;
use fancy_regex::Regex;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use std::fmt::Write as _;
use std::time::SystemTime;

/// Values nest at most so deep in JSON.
const MAX_DEPTH: usize = 64;

/// What a template said when it refused a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Adds the helpers that need nothing of the conversation.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson);
}

/// The template without transformers' own block `{% generation %}`, which marks what a training
/// run learns from and writes nothing.
pub(super) fn without_extensions(source: &str) -> String {
    let opening = Regex::new(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})");
    let closing = Regex::new(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})");
    let constant = "the pattern is a constant and compiles";
    let source = opening
        .expect(constant)
        .replace_all(source, "${1}if true${2}");
    let source = closing
        .expect(constant)
        .replace_all(&source, "${1}endif${2}");
    source.into_owned()
}

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(
        ErrorKind::InvalidOperation,
        "the template raised an exception",
    );
    Err(error.with_source(Raised(message)))
}

/// `strftime_now(format)` at a given time.
pub(super) fn strftime_now(now: SystemTime) -> Value {
    Value::from_function(move |format: String| -> Result<String, Error> {
        date::format(now, &format).map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason))
    })
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it. Jinja's own
/// filter escapes for HTML, which would spoil a prompt.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Other options of Python's are taken and make no difference here.
    let mut out = String::new();
    let mut writer = JsonWriter {
        out: &mut out,
        indent: indent.map(|indent| indent.min(16)),
    };
    writer.value(value, 0)?;
    Ok(out)
}

struct JsonWriter<'a> {
    out: &'a mut String,
    indent: Option<usize>,
}

impl JsonWriter<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            let reason = "the value nests too deep for JSON";
            return Err(Error::new(ErrorKind::BadSerialization, reason));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                let _ = write!(self.out, "{value}");
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item));
                self.list(['[', ']'], items, depth)?;
            }
            ValueKind::Map => {
                let keys: Vec<Value> = value.try_iter()?.collect();
                let mut items = Vec::with_capacity(keys.len());
                for key in keys {
                    let item = value.get_item(&key)?;
                    items.push((Some(key), item));
                }
                self.list(['{', '}'], items.into_iter(), depth)?;
            }
            _ => self.string(&value.to_string()),
        }
        Ok(())
    }

    fn list(
        &mut self,
        [open, close]: [char; 2],
        items: impl Iterator<Item = (Option<Value>, Value)>,
        depth: usize,
    ) -> Result<(), Error> {
        self.out.push(open);
        let mut is_empty = true;
        for (key, item) in items {
            if !is_empty {
                // Python puts a space after the comma only where no new line follows.
                self.out
                    .push_str(if self.indent.is_some() { "," } else { ", " });
            }
            is_empty = false;
            self.line(depth + 1);
            if let Some(key) = key {
                self.string(&key.to_string());
                self.out.push_str(": ");
            }
            self.value(&item, depth + 1)?;
        }
        if !is_empty {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        let quoted = serde_json::to_string(text);
        self.out
            .push_str(&quoted.expect("every text can be quoted"));
    }
}
