//! Stop texts: an answer ends before the first of them, wherever tokens happen to end.

use std::ops::Range;

/// The most stop texts of a request.
pub const MAX_STOPS: usize = 16;
/// The longest stop text.
pub const MAX_STOP_BYTES: usize = 1024;

/// Why stop texts are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// Too many.
    #[error("{count} stop texts are too many (the limit is {MAX_STOPS}); leave some out")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// Every answer would end before it began.
    #[error("a stop text is empty; leave it out")]
    Empty,
    /// Too long.
    #[error("a stop text has {bytes} bytes (the limit is {MAX_STOP_BYTES}); shorten it")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

/// What came of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutcome {
    /// Text that no stop text can begin in any more.
    pub text: String,
    /// A stop text is complete: the answer ends here, and what follows is ignored.
    pub stopped: bool,
}

/// Watches for stop texts across the borders of pieces; holds back what may be the beginning of
/// one. Of several the one that is complete first counts, so the pieces make no difference.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Held back: a beginning of some stop text.
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher for these texts; none at all is fine.
    pub fn new(stops: &[String]) -> Result<Self, StopError> {
        if stops.len() > MAX_STOPS {
            return Err(StopError::TooMany { count: stops.len() });
        }
        for stop in stops {
            match stop.len() {
                0 => return Err(StopError::Empty),
                bytes if bytes > MAX_STOP_BYTES => return Err(StopError::TooLong { bytes }),
                _ => {}
            }
        }
        Ok(Self {
            stops: stops.to_vec(),
            held: String::new(),
            stopped: false,
        })
    }

    /// Takes the next piece of the answer.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome {
                text: String::new(),
                stopped: true,
            };
        }
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        if let Some(found) = self.first_complete(&text) {
            self.stopped = true;
            text.truncate(found.start);
        } else {
            self.held = text.split_off(self.safe_len(&text));
        }
        StopOutcome {
            text,
            stopped: self.stopped,
        }
    }

    /// The end of the answer: what was held back was no stop text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop text is that is complete first; of those that end together, the longest.
    fn first_complete(&self, text: &str) -> Option<Range<usize>> {
        let found = self.stops.iter().filter_map(|stop| {
            let start = text.find(stop.as_str())?;
            Some(start..start + stop.len())
        });
        found.min_by_key(|range| (range.end, range.start))
    }

    /// Length of the text before the longest ending that begins some stop text.
    fn safe_len(&self, text: &str) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(1);
        let from = text.len().saturating_sub(longest - 1);
        let begins_stop = |at: &usize| {
            let ending = text.get(*at..);
            ending.is_some_and(|ending| self.stops.iter().any(|stop| stop.starts_with(ending)))
        };
        (from..text.len()).find(begins_stop).unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        StopMatcher::new(&stops).expect("the stop texts are fine")
    }

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = matcher(stops);
        let mut text = String::new();
        for piece in pieces {
            let outcome = matcher.push(piece);
            text.push_str(&outcome.text);
            if outcome.stopped {
                return (text, true);
            }
        }
        text.push_str(&matcher.finish());
        (text, false)
    }

    #[test]
    fn an_answer_ends_before_the_stop_text_wherever_tokens_end() {
        let cases: [(&[&str], &[&str], &str, bool); 8] = [
            (&["\n\n"], &["one\n", "\ntwo"], "one", true),
            (&["STOP"], &["a S", "T", "OP b"], "a ", true),
            (&["STOP"], &["a S", "T", "art"], "a STart", false),
            (&["STOP"], &["a STO"], "a STO", false),
            (&["aab"], &["aaa", "ab!"], "aa", true),
            (&["abcd", "bc"], &["xabcd"], "xa", true),
            (&["ß"], &["gro", "ß"], "gro", true),
            (&[], &["any", "thing"], "anything", false),
        ];
        for (stops, pieces, expected, stopped) in cases {
            let (text, has_stopped) = run(stops, pieces);
            assert_eq!(has_stopped, stopped, "{pieces:?}");
            assert_eq!(text, expected, "{pieces:?}");
        }
    }

    #[test]
    fn only_what_may_become_a_stop_text_is_held_back() {
        let mut matcher = matcher(&["<end>"]);
        assert_eq!(matcher.push("text <").text, "text ");
        assert_eq!(matcher.push("e").text, "");
        assert_eq!(matcher.push("x").text, "<ex");
        let last = matcher.push("<end>more");
        assert_eq!((last.text.as_str(), last.stopped), ("", true));
        assert_eq!(matcher.push("ignored").text, "");
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn stop_texts_out_of_range_are_refused() {
        let many = vec!["x".to_owned(); MAX_STOPS + 1];
        assert!(matches!(
            StopMatcher::new(&many),
            Err(StopError::TooMany { .. })
        ));
        assert!(matches!(
            StopMatcher::new(&[String::new()]),
            Err(StopError::Empty)
        ));
        let long = ["x".repeat(MAX_STOP_BYTES + 1)];
        assert!(matches!(
            StopMatcher::new(&long),
            Err(StopError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn the_pieces_make_no_difference(
            text in "[abc\u{e9}]{0,40}",
            stops in prop::collection::vec("[abc\u{e9}]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            at.retain(|cut| text.is_char_boundary(*cut));
            at.extend([0, text.len()]);
            at.sort_unstable();
            let pieces: Vec<&str> = at.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stops, &pieces), run(&stops, &[&text]));
        }
    }
}
