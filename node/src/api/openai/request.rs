//! Requests for completions, checked: every field in its type and range, or an error that names
//! the field. Fields that OpenAI defines and that would change the answer, but are not built, are
//! refused; fields that do not change the answer (`user`, `metadata`, …) are ignored.

use accel_actors::FaultTolerance;
use serde_json::Value;

use super::fields::{Fields, wrong_type};
use crate::api::error::ApiError;

const MAX_STOP: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
const MAX_MESSAGES: usize = 4096;
const MAX_TOP_LOGPROBS: i64 = 20;
const FAULT_TOLERANCE: &str = "fault_tolerance";
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// What both kinds of completion have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Name, CID or path of the model.
    pub model: String,
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: u32,
    pub min_p: f32,
    /// Absent: a seed is drawn for the request.
    pub seed: Option<u64>,
    /// Absent: until the model stops or its context is full.
    pub max_tokens: Option<u32>,
    pub stop: Vec<String>,
    pub stream: bool,
    /// Whether a stream ends with a chunk that holds the usage.
    pub include_usage: bool,
    /// Log-probabilities are wanted, with so many alternatives.
    pub logprobs: Option<u32>,
    /// Whether each choice lists its token ids (an extension that vLLM has, too).
    pub return_token_ids: bool,
    /// How much the request survives (an extension); absent: what the header or the node says.
    pub fault_tolerance: Option<FaultTolerance>,
}

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: String,
    pub content: String,
}

/// `POST /v1/chat/completions`.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    pub messages: Vec<Message>,
    pub options: Options,
}

/// What a completion continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// `POST /v1/completions`.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    pub prompt: Prompt,
    pub options: Options,
}

impl ChatRequest {
    /// Reads and checks the body of a request.
    pub fn parse(body: Value) -> Result<Self, ApiError> {
        let mut fields = Fields::new(body)?;
        let model = fields.required_text("model")?;
        let messages = messages(&mut fields)?;
        refuse_unsupported(&mut fields)?;
        refuse_tools(&mut fields)?;
        let wanted = fields.flag("logprobs")?;
        let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
        if top.is_some() && !wanted {
            let message = "`top_logprobs` needs `logprobs` to be true";
            return Err(ApiError::param("top_logprobs", message));
        }
        let logprobs = wanted.then(|| top.unwrap_or(0) as u32);
        let options = options(&mut fields, model, logprobs)?;
        Ok(Self { messages, options })
    }
}

impl CompletionRequest {
    /// Reads and checks the body of a request.
    pub fn parse(body: Value) -> Result<Self, ApiError> {
        let mut fields = Fields::new(body)?;
        let model = fields.required_text("model")?;
        let prompt = prompt(&mut fields)?;
        refuse_unsupported(&mut fields)?;
        refuse_completion_extras(&mut fields)?;
        let logprobs = fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?;
        let options = options(&mut fields, model, logprobs.map(|n| n as u32))?;
        Ok(Self { prompt, options })
    }
}

fn options(fields: &mut Fields, model: String, logprobs: Option<u32>) -> Result<Options, ApiError> {
    let stream = fields.flag("stream")?;
    Ok(Options {
        model,
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32,
        top_p: top_p(fields)?,
        top_k: fields
            .integer("top_k", 0..=i64::from(i32::MAX))?
            .unwrap_or(0) as u32,
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32,
        seed: seed(fields)?,
        max_tokens: max_tokens(fields)?,
        stop: stop(fields)?,
        stream,
        include_usage: include_usage(fields, stream)?,
        logprobs,
        return_token_ids: fields.flag("return_token_ids")?,
        fault_tolerance: fault_tolerance(fields)?,
    })
}

fn fault_tolerance(fields: &mut Fields) -> Result<Option<FaultTolerance>, ApiError> {
    let given = fields.text(FAULT_TOLERANCE)?;
    given.map(|level| level_of(&level)).transpose()
}

/// The level that a field or a header names.
pub fn level_of(text: &str) -> Result<FaultTolerance, ApiError> {
    text.parse()
        .map_err(|error| ApiError::from(error).with_param(FAULT_TOLERANCE))
}

fn top_p(fields: &mut Fields) -> Result<f32, ApiError> {
    let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0) as f32;
    if top_p > 0.0 {
        return Ok(top_p);
    }
    let message = "`top_p` must be above 0: nothing could be sampled";
    Err(ApiError::param("top_p", message).with_hint("for a greedy answer set `temperature` to 0"))
}

/// A seed is any 64-bit whole number; a negative one stands for the same bits.
fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    match fields.take("seed") {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_i64().map(|seed| seed as u64))
            .map(Some)
            .ok_or_else(|| wrong_type("seed", "a whole number of 64 bits", &value)),
    }
}

fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let range = 1..=i64::from(u32::MAX);
    let older = fields.integer("max_tokens", range.clone())?;
    let newer = fields.integer("max_completion_tokens", range)?;
    if let (Some(older), Some(newer)) = (older, newer)
        && older != newer
    {
        let message = "`max_tokens` and `max_completion_tokens` differ";
        return Err(ApiError::param("max_tokens", message).with_hint("send only one of them"));
    }
    Ok(newer.or(older).map(|n| n as u32))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let given = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(single) => vec![single],
    };
    if given.len() > MAX_STOP {
        let message = format!("`stop` may hold at most {MAX_STOP} strings");
        return Err(ApiError::param("stop", message));
    }
    let mut strings = Vec::with_capacity(given.len());
    for item in given {
        let Value::String(text) = item else {
            return Err(wrong_type("stop", "a string or a list of strings", &item));
        };
        if text.is_empty() || text.len() > MAX_STOP_BYTES {
            let message = format!("each `stop` string must have 1 to {MAX_STOP_BYTES} bytes");
            return Err(ApiError::param("stop", message));
        }
        strings.push(text);
    }
    Ok(strings)
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(mut stream_options) = fields.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        let message = "`stream_options` needs `stream` to be true";
        return Err(ApiError::param("stream_options", message));
    }
    stream_options.flag("include_usage")
}

/// Fields of both kinds of completion that would change the answer and are not built.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    if fields.integer("n", 1..=128)?.unwrap_or(1) != 1 {
        let error = ApiError::unsupported("n", "only one choice per request (`n` = 1)");
        return Err(error.with_hint("send one request per choice, each with its own `seed`"));
    }
    for name in ["frequency_penalty", "presence_penalty"] {
        if fields.number(name, -2.0..=2.0)?.unwrap_or(0.0) != 0.0 {
            let message = format!("`{name}` is not supported yet");
            return Err(ApiError::unsupported(name, message).with_hint("leave it out, or send 0"));
        }
    }
    if let Some(bias) = fields.take("logit_bias")
        && bias.as_object().is_none_or(|map| !map.is_empty())
    {
        let error = ApiError::unsupported("logit_bias", "`logit_bias` is not supported yet");
        return Err(error.with_hint("leave it out"));
    }
    Ok(())
}

fn refuse_tools(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["tools", "functions"] {
        if fields.list(name)?.is_some_and(|items| !items.is_empty()) {
            let message = format!("`{name}` is not supported yet");
            return Err(ApiError::unsupported(name, message).with_hint("leave it out"));
        }
    }
    let Some(mut format) = fields.object("response_format")? else {
        return Ok(());
    };
    match format.text("type")?.as_deref() {
        None | Some("text") => Ok(()),
        Some(other) => {
            let message = format!("the response format `{other}` is not supported yet");
            Err(ApiError::unsupported("response_format", message).with_hint("use `text`"))
        }
    }
}

fn refuse_completion_extras(fields: &mut Fields) -> Result<(), ApiError> {
    if fields.flag("echo")? {
        return Err(ApiError::unsupported("echo", "`echo` is not supported yet"));
    }
    if fields.text("suffix")?.is_some_and(|text| !text.is_empty()) {
        let message = "`suffix` is not supported yet";
        return Err(ApiError::unsupported("suffix", message));
    }
    if fields.integer("best_of", 1..=128)?.unwrap_or(1) != 1 {
        let message = "only one choice per request (`best_of` = 1)";
        return Err(ApiError::unsupported("best_of", message));
    }
    Ok(())
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let items = fields.list("messages")?.unwrap_or_default();
    if items.is_empty() {
        let message = "`messages` must hold at least one message";
        return Err(ApiError::param("messages", message));
    }
    if items.len() > MAX_MESSAGES {
        let message = format!("`messages` may hold at most {MAX_MESSAGES} messages");
        return Err(ApiError::param("messages", message));
    }
    let mut messages = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        messages.push(message(index, item)?);
    }
    Ok(messages)
}

fn message(index: usize, item: Value) -> Result<Message, ApiError> {
    let place = format!("messages[{index}]");
    if !item.is_object() {
        return Err(wrong_type(&place, "an object", &item));
    }
    let mut fields = Fields::new(item)?;
    let role = fields
        .required_text("role")
        .map_err(|error| error.with_param(&format!("{place}.role")))?;
    if !ROLES.contains(&role.as_str()) {
        let message = format!("the role `{role}` is not one of {}", ROLES.join(", "));
        return Err(ApiError::param(&format!("{place}.role"), message));
    }
    let content = content(&format!("{place}.content"), fields.take("content"), &role)?;
    // OpenAI's newer name for what every chat template knows as the system's message.
    let role = match role.as_str() {
        "developer" => "system".to_owned(),
        _ => role,
    };
    Ok(Message { role, content })
}

/// A text, or a list of parts of type `text`. Only an assistant may have said nothing.
fn content(place: &str, value: Option<Value>, role: &str) -> Result<String, ApiError> {
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => parts
            .into_iter()
            .map(|part| text_part(place, part))
            .collect(),
        None if role == "assistant" => Ok(String::new()),
        None => Err(ApiError::param(place, format!("`{place}` is required"))),
        Some(other) => Err(wrong_type(place, "a string or a list of parts", &other)),
    }
}

fn text_part(place: &str, part: Value) -> Result<String, ApiError> {
    if !part.is_object() {
        return Err(wrong_type(place, "a list of objects", &part));
    }
    let mut fields = Fields::new(part)?;
    let kind = fields.text("type").map_err(|e| e.with_param(place))?;
    match kind.as_deref() {
        Some("text") => fields
            .text("text")
            .map_err(|e| e.with_param(place))?
            .ok_or_else(|| ApiError::param(place, "a part of type `text` needs a `text`")),
        other => {
            let kind = other.unwrap_or("none");
            let message = format!("parts of type `{kind}` are not supported, only `text`");
            Err(ApiError::unsupported(place, message))
        }
    }
}

fn prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    match fields.take("prompt") {
        None => Err(ApiError::param("prompt", "`prompt` is required")),
        Some(Value::String(text)) => Ok(Prompt::Text(text)),
        Some(Value::Array(items)) => prompt_list(items),
        Some(other) => Err(wrong_type(
            "prompt",
            "a string or a list of token ids",
            &other,
        )),
    }
}

/// A list of token ids, or OpenAI's list of prompts when it holds exactly one.
fn prompt_list(mut items: Vec<Value>) -> Result<Prompt, ApiError> {
    let nested = items.first().is_some_and(|v| v.is_string() || v.is_array());
    if nested && items.len() > 1 {
        let error = ApiError::unsupported("prompt", "only one prompt per request");
        return Err(error.with_hint("send one request per prompt"));
    }
    if nested && let Some(single) = items.pop() {
        return match single {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(tokens) => token_ids(tokens),
            other => Err(wrong_type(
                "prompt",
                "a string or a list of token ids",
                &other,
            )),
        };
    }
    token_ids(items)
}

fn token_ids(items: Vec<Value>) -> Result<Prompt, ApiError> {
    if items.is_empty() {
        return Err(ApiError::param("prompt", "`prompt` must not be empty"));
    }
    let mut tokens = Vec::with_capacity(items.len());
    for item in items {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        tokens.push(id.ok_or_else(|| wrong_type("prompt", "a list of token ids", &item))?);
    }
    Ok(Prompt::Tokens(tokens))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
