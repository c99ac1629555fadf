//! GPT-2's alphabet: one printable letter for each byte.
//!
//! Bytes that print stand for themselves; the others (spaces, control characters, …) take the
//! letters from U+0100 on, in their order.

/// The letter of a byte.
#[cfg(test)]
pub(super) fn letter(byte: u8) -> char {
    let letters = (0..0x200u32).filter_map(char::from_u32);
    let mut letters = letters.filter(|&letter| byte_of(letter) == Some(byte));
    letters.next().expect("every byte has a letter")
}

/// The byte that a letter stands for, if it is of the alphabet.
pub(super) fn byte_of(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        // 0x00–0x20, 0x7f–0xa0 and 0xad are the 68 bytes that do not print.
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The bytes that a token spells, unless it has letters that are not of the alphabet.
pub(super) fn bytes_of(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_exactly_one_letter() {
        for byte in 0..=255u8 {
            let letters = (0..0x1000u32).filter_map(char::from_u32);
            let spelling = letters.filter(|&letter| byte_of(letter) == Some(byte));
            assert_eq!(spelling.count(), 1, "byte {byte:#04x}");
        }
    }

    #[test]
    fn well_known_letters_are_gpt2s() {
        for (letter, byte) in [
            ('Ġ', b' '),
            ('Ċ', b'\n'),
            ('ĉ', b'\t'),
            ('A', b'A'),
            ('Ń', 0xad),
        ] {
            assert_eq!(byte_of(letter), Some(byte), "{letter}");
        }
        assert_eq!(letter(b' '), 'Ġ');
        assert_eq!(bytes_of("Ġhé"), Some(b" h\xe9".to_vec()));
        assert_eq!(bytes_of("日"), None);
    }
}
