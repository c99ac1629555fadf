//! One JSON object, read field by field: what is wrong is told with the name of the parameter.
//! `null` means absent, as OpenAI's clients expect.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::api::error::ApiError;

/// The fields of a request.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// The body must be an object.
    pub fn new(body: Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(map) => Ok(Self(map)),
            other => Err(ApiError::param(
                "body",
                format!("the body must be a JSON object, not {}", type_name(&other)),
            )),
        }
    }

    /// The value of a field, unless absent or null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, "a string", &other)),
        }
    }

    /// A text that must be there.
    pub fn required_text(&mut self, name: &str) -> Result<String, ApiError> {
        self.text(name)?
            .filter(|text| !text.is_empty())
            .ok_or_else(|| ApiError::param(name, format!("`{name}` is required")))
    }

    /// A flag; false when absent.
    pub fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.optional_flag(name)?.unwrap_or(false))
    }

    /// A flag that must be there.
    pub fn required_flag(&mut self, name: &str) -> Result<bool, ApiError> {
        self.optional_flag(name)?
            .ok_or_else(|| ApiError::param(name, format!("`{name}` is required")))
    }

    fn optional_flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(name, "a boolean", &other)),
        }
    }

    /// A finite number within a range.
    pub fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_f64() else {
            return Err(wrong_type(name, "a number", &value));
        };
        if !range.contains(&number) {
            let (low, high) = (range.start(), range.end());
            let message = format!("`{name}` must be between {low} and {high}, not {number}");
            return Err(ApiError::param(name, message));
        }
        Ok(Some(number))
    }

    /// A whole number within a range.
    pub fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let Some(number) = whole(&value) else {
            return Err(wrong_type(name, "a whole number", &value));
        };
        if !range.contains(&number) {
            return Err(ApiError::param(name, out_of(name, &range, number)));
        }
        Ok(Some(number))
    }

    /// An object within the object.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self(map))),
            Some(other) => Err(wrong_type(name, "an object", &other)),
        }
    }

    /// A list.
    pub fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong_type(name, "a list", &other)),
        }
    }
}

/// `1` and `1.0`, but not `1.5`.
fn whole(value: &Value) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let number = value.as_f64()?;
    let exact = number.fract() == 0.0 && number.abs() < 9e15;
    exact.then_some(number as i64)
}

fn out_of(name: &str, range: &RangeInclusive<i64>, number: i64) -> String {
    let (low, high) = (range.start(), range.end());
    match *high {
        i64::MAX => format!("`{name}` must be at least {low}, not {number}"),
        _ => format!("`{name}` must be between {low} and {high}, not {number}"),
    }
}

/// The complaint that a field holds something else than it should.
pub fn wrong_type(name: &str, expected: &str, found: &Value) -> ApiError {
    let message = format!("`{name}` must be {expected}, not {}", type_name(found));
    ApiError::param(name, message)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
