//! The most likely token: every greedy answer looks through the whole vocabulary for it.

use super::SampleError;

/// Logits that are looked at side by side: the compiler makes vectors of them.
const LANES: usize = 16;

/// The token with the highest logit, of equals the lowest, and its logit.
///
/// Minus infinity is a fine logit (a token that cannot be), as long as another is finite.
pub(crate) fn highest(logits: &[f32]) -> Result<(u32, f32), SampleError> {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut is_bad = [false; LANES];
    let mut look = |some: &[f32; LANES]| {
        for lane in 0..LANES {
            let value = some[lane];
            is_bad[lane] |= value.is_nan();
            best[lane] = if value > best[lane] {
                value
            } else {
                best[lane]
            };
        }
    };
    chunks.iter().for_each(&mut look);
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);
    look(&last);
    let best = best.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if is_bad.contains(&true) || best.is_infinite() {
        return Err(complaint(logits, best));
    }
    let token = logits.iter().position(|logit| *logit == best);
    let token = token.ok_or(SampleError::NoLogits)?;
    Ok((token as u32, best))
}

/// What is wrong with logits that are not all numbers, or whose highest is infinite.
fn complaint(logits: &[f32], best: f32) -> SampleError {
    let is_bad = |value: f32| value.is_nan() || (best.is_infinite() && value == best);
    let found = (0u32..).zip(logits).find(|(_, value)| is_bad(**value));
    match found {
        Some((token, &value)) => SampleError::BadLogit { token, value },
        None => SampleError::NoLogits,
    }
}
