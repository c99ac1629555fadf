//! Chat templates: how a model wants a conversation written.
//!
//! A model file carries its template in Jinja, written for Python's; `minijinja` with its Python
//! methods runs it here, with the helpers that templates expect (`helpers`). A template comes
//! from strangers: a budget of fuel bounds the time and the memory that rendering may take, and
//! it sees nothing but the conversation, the model's BOS and EOS and the date.

mod date;
mod error;
mod helpers;
#[cfg(test)]
mod tests;

pub use error::ChatError;

use crate::gguf::Gguf;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Value, context};
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

const KEY: &str = "tokenizer.chat_template";
const NAME: &str = "chat_template";

/// The longest template that is taken; the longest known are about 20 KiB.
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// The longest conversation that is rendered, in bytes of all messages.
const MAX_CONVERSATION_BYTES: usize = 8 << 20;

/// One unit pays for about one instruction or 64 bytes: 256 MiB and a second or two at the most.
const FUEL: u64 = 4 << 20;

/// How deep macros and blocks may nest.
const RECURSION: usize = 64;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// The chat template of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The template of a model file, if it has one. A base model has none.
    pub fn from_gguf(gguf: &Gguf) -> Result<Option<Self>, ChatError> {
        let Some(source) = gguf.metadata.str(KEY) else {
            return Ok(None);
        };
        let text_of = |name: &str| {
            let id = gguf
                .metadata
                .u32(&format!("tokenizer.ggml.{name}_token_id"))?;
            let tokens = gguf.metadata.strings("tokenizer.ggml.tokens")?;
            tokens.get(id as usize)
        };
        let bos = text_of("bos").unwrap_or_default();
        let eos = text_of("eos").unwrap_or_default();
        Self::new(source, bos, eos).map(Some)
    }

    /// A template from its source and the texts of the model's BOS and EOS.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, ChatError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(ChatError::TemplateTooLong {
                bytes: source.len(),
                limit: MAX_SOURCE_BYTES,
            });
        }
        let mut environment = Environment::new();
        // As Hugging Face's transformers sets Jinja up.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.expect("the delimiters are the default ones"));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        helpers::install(&mut environment);
        environment
            .add_template_owned(NAME, helpers::without_extensions(source))
            .map_err(ChatError::bad_template)?;
        Ok(Self {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// The conversation as the model wants it, today. Encode it with `parse_special`.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        self.render_at(messages, add_generation_prompt, SystemTime::now())
    }

    /// As [`Self::render`], at a given time: some templates state the date (in UTC).
    pub fn render_at(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String, ChatError> {
        let lengths = messages.iter().map(|m| m.role.len() + m.content.len());
        let bytes = lengths.sum();
        if bytes > MAX_CONVERSATION_BYTES {
            return Err(ChatError::ConversationTooLong {
                bytes,
                limit: MAX_CONVERSATION_BYTES,
            });
        }
        let context = context! {
            messages => messages.iter().map(to_value).collect::<Vec<_>>(),
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            strftime_now => helpers::strftime_now(now),
        };
        let template = self.environment.get_template(NAME);
        let template = template.map_err(ChatError::bad_template)?;
        template.render(context).map_err(ChatError::from_render)
    }
}

fn to_value(message: &ChatMessage) -> Value {
    context! { role => message.role.as_str(), content => message.content.as_str() }
}
