//! Lists of texts, such as vocabularies.

use std::fmt;
use std::sync::Arc;

/// A list of texts that lie one after the other in one piece of memory: of hundreds of thousands of
/// tokens, each some bytes long, a `String` each would take ten times as much. Clones share the
/// memory.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings(Arc<Texts>);

#[derive(Clone, Default, PartialEq, Eq)]
struct Texts {
    text: String,
    /// Where each ends.
    ends: Vec<u32>,
}

impl Strings {
    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.0.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.ends.is_empty()
    }

    /// The text at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let Texts { text, ends } = &*self.0;
        let end = *ends.get(index)?;
        let start = match index.checked_sub(1) {
            Some(before) => *ends.get(before)?,
            None => 0,
        };
        text.get(start as usize..end as usize)
    }

    /// All texts in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }

    /// Gives back what was taken in advance.
    pub(super) fn shrink_to_fit(&mut self) {
        let texts = Arc::make_mut(&mut self.0);
        texts.text.shrink_to_fit();
        texts.ends.shrink_to_fit();
    }

    /// Appends a text.
    ///
    /// # Panics
    /// If all texts together would be longer than 4 GiB; those of a model file are far from it
    /// ([`super::HEADER_LIMIT`]).
    pub fn push(&mut self, text: &str) {
        let texts = Arc::make_mut(&mut self.0);
        texts.text.push_str(text);
        let end = u32::try_from(texts.text.len());
        texts.ends.push(end.expect("texts are below 4 GiB"));
    }
}

impl<T: AsRef<str>> FromIterator<T> for Strings {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        let mut all = Self::default();
        for text in texts {
            all.push(text.as_ref());
        }
        all
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn texts_come_back_as_they_were(texts in proptest::collection::vec(".{0,5}", 0..20)) {
            let strings: Strings = texts.iter().collect();
            prop_assert_eq!(strings.len(), texts.len());
            prop_assert_eq!(strings.is_empty(), texts.is_empty());
            prop_assert!(strings.iter().eq(texts.iter().map(String::as_str)));
            for index in 0..=texts.len() {
                let expected = texts.get(index).map(String::as_str);
                prop_assert_eq!(strings.get(index), expected);
            }
        }
    }

    #[test]
    fn a_clone_does_not_see_what_is_added() {
        let mut strings: Strings = ["a", ""].into_iter().collect();
        let clone = strings.clone();
        strings.push("é");
        assert_eq!(
            format!("{clone:?} {strings:?}"),
            r#"["a", ""] ["a", "", "é"]"#
        );
    }
}
