//! From a request to the tokens of its prompt, and how many may follow.

use std::sync::Arc;

use accel_inference::StopMatcher;

use crate::error::GenerateError;
use crate::models::Card;
use crate::request::{GenerateRequest, Input};
use crate::session::record::FORM_LIMIT;

/// The longest prompt as text, far beyond any context.
const LONGEST_TEXT: usize = 16 << 20;

/// Refuses what is out of range before anything is done for it; gives what watches for the stop
/// texts.
pub(crate) fn check(request: &mut GenerateRequest) -> Result<StopMatcher, GenerateError> {
    let bad = |field, problem: &str| GenerateError::BadField {
        field,
        problem: problem.to_owned(),
    };
    request.sampling.top_logprobs = request.sampling.top_logprobs.max(request.top_logprobs);
    request
        .sampling
        .check()
        .map_err(|error| bad("sampling", &error.to_string()))?;
    if request
        .form
        .as_ref()
        .is_some_and(|form| form.len() > FORM_LIMIT)
    {
        return Err(bad("form", "is longer than 4096 bytes"));
    }
    if request.max_tokens == Some(0) {
        return Err(bad("max_tokens", "must be at least 1"));
    }
    let length = match &request.input {
        Input::Text(text) => text.len(),
        Input::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
        Input::Tokens(tokens) => tokens.len(),
    };
    if length > LONGEST_TEXT {
        return Err(bad("prompt", "is longer than any context"));
    }
    StopMatcher::new(&request.stop).map_err(|error| bad("stop", &error.to_string()))
}

/// The tokens of a prompt. Long texts take a while, so this runs on a thread for that.
pub(crate) async fn tokens(card: &Card, input: Input) -> Result<Vec<u32>, GenerateError> {
    let card = card.clone();
    let encoding = tokio::task::spawn_blocking(move || encode(&card, input));
    match encoding.await {
        Ok(tokens) => tokens,
        Err(_) => Err(GenerateError::Internal(
            "encoding the prompt panicked".to_owned(),
        )),
    }
}

fn encode(card: &Card, input: Input) -> Result<Vec<u32>, GenerateError> {
    let internal = |error: &dyn std::fmt::Display| GenerateError::Internal(error.to_string());
    let tokens = match input {
        Input::Tokens(tokens) => return checked(tokens, card.header.shape.vocab),
        Input::Text(text) => card.tokenizer.encode(&text, true, true),
        Input::Chat(messages) => {
            let template = card.template.as_ref().map(Arc::clone);
            let template = template.ok_or_else(|| GenerateError::NoChatTemplate {
                model: card.model.name.clone(),
            })?;
            let rendered = template.render(&messages, true);
            let rendered = rendered.map_err(|error| GenerateError::Template(error.to_string()))?;
            card.tokenizer.encode(&rendered, true, true)
        }
    };
    let tokens = tokens.map_err(|error| internal(&error))?;
    checked(tokens, card.header.shape.vocab)
}

fn checked(tokens: Vec<u32>, vocab: u32) -> Result<Vec<u32>, GenerateError> {
    if tokens.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    match tokens.iter().find(|token| **token >= vocab) {
        Some(token) => Err(GenerateError::BadField {
            field: "prompt",
            problem: format!("the token {token} is outside the vocabulary of {vocab}"),
        }),
        None => Ok(tokens),
    }
}

/// The longest answer that prompt, context and request leave room for.
pub(crate) fn room(
    prompt: &[u32],
    context: u32,
    asked: Option<u32>,
    default_answer: u32,
) -> Result<u32, GenerateError> {
    let prompt_tokens = prompt.len();
    let used = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
    let left = context.saturating_sub(used);
    if left == 0 {
        return Err(GenerateError::PromptTooLong {
            prompt_tokens,
            context,
        });
    }
    Ok(asked.unwrap_or(default_answer).clamp(1, left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_gets_what_was_asked_for_as_far_as_the_context_goes() {
        let prompt = [1; 10];
        assert_eq!(room(&prompt, 100, Some(20), 50).unwrap(), 20);
        assert_eq!(room(&prompt, 100, None, 50).unwrap(), 50);
        assert_eq!(room(&prompt, 100, Some(500), 50).unwrap(), 90);
        assert_eq!(
            room(&prompt, 10, None, 50).unwrap_err().code(),
            "context_length_exceeded"
        );
    }

    #[test]
    fn values_out_of_range_are_named() {
        type Change = fn(&mut GenerateRequest);
        let with = |change: Change| {
            let mut request = GenerateRequest::text("model", "prompt");
            change(&mut request);
            check(&mut request).map(|_| ())
        };
        assert!(with(|_| {}).is_ok());
        let cases: [(Change, &str); 5] = [
            (|r| r.sampling.temperature = -1.0, "sampling"),
            (|r| r.sampling.temperature = f32::NAN, "sampling"),
            (|r| r.sampling.top_p = 1.5, "sampling"),
            (|r| r.max_tokens = Some(0), "max_tokens"),
            (|r| r.stop = vec![String::new()], "stop"),
        ];
        for (change, field) in cases {
            let error = with(change).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
