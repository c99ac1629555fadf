//! `strftime` for the date in a prompt, in UTC and in English whatever the machine's settings.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The longest format that is taken.
const MAX_FORMAT_BYTES: usize = 256;

/// A time, taken apart.
struct Date {
    year: i64,
    /// From 0.
    month: usize,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// From 0, which is Monday.
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

/// Formats a time as C's `strftime` does, as far as templates go.
pub(super) fn format(now: SystemTime, format: &str) -> Result<String, String> {
    if format.len() > MAX_FORMAT_BYTES {
        return Err(format!("the date format has {} bytes", format.len()));
    }
    let date = Date::new(now);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut directive = letters.next();
        // `%-d` leaves out the leading zero.
        let is_bare = directive == Some('-');
        if is_bare {
            directive = letters.next();
        }
        let field = directive.and_then(|directive| date.field(directive));
        let field = field.ok_or_else(|| format!("the date format {format:?} is not supported"))?;
        let bare = field.trim_start_matches(['0', ' ']);
        match is_bare {
            true if bare.is_empty() => out.push('0'),
            true => out.push_str(bare),
            false => out.push_str(&field),
        }
    }
    Ok(out)
}

impl Date {
    fn new(now: SystemTime) -> Self {
        // A clock before 1970 is not set; any date is as wrong.
        let seconds = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let days = seconds / 86_400;
        let (year, day_of_year) = year_of(days);
        let (month, day) = month_of(year, day_of_year);
        Self {
            year,
            month,
            day: day + 1,
            day_of_year: day_of_year + 1,
            // The first of January 1970 was a Thursday.
            weekday: ((days + 3) % 7) as usize,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }

    fn field(&self, directive: char) -> Option<String> {
        let two = |number: u64| Some(format!("{number:02}"));
        let short = |name: &str| name.get(..3).map(str::to_owned);
        match directive {
            'Y' => Some(self.year.to_string()),
            'y' => Some(format!("{:02}", self.year % 100)),
            'm' => two(self.month as u64 + 1),
            'd' => two(self.day),
            'e' => Some(format!("{:2}", self.day)),
            'j' => Some(format!("{:03}", self.day_of_year)),
            'B' => MONTHS.get(self.month).map(|name| (*name).to_owned()),
            'b' | 'h' => MONTHS.get(self.month).and_then(|name| short(name)),
            'A' => DAYS.get(self.weekday).map(|name| (*name).to_owned()),
            'a' => DAYS.get(self.weekday).and_then(|name| short(name)),
            'H' => two(self.hour),
            'I' => two((self.hour + 11) % 12 + 1),
            'M' => two(self.minute),
            'S' => two(self.second),
            'p' => Some(if self.hour < 12 { "AM" } else { "PM" }.to_owned()),
            'F' => self.all("-", &['Y', 'm', 'd']),
            'T' => self.all(":", &['H', 'M', 'S']),
            'D' => self.all("/", &['m', 'd', 'y']),
            '%' => Some("%".to_owned()),
            _ => None,
        }
    }

    fn all(&self, between: &str, directives: &[char]) -> Option<String> {
        let mut out = String::new();
        for (index, directive) in directives.iter().enumerate() {
            let between = if index == 0 { "" } else { between };
            let _ = write!(out, "{between}{}", self.field(*directive)?);
        }
        Some(out)
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// The year, and the day in it from 0, of a count of days since 1970.
fn year_of(days: u64) -> (i64, u64) {
    // 400 years are always 146097 days: the loop runs at most 400 times.
    let mut year = 1970 + 400 * (days / 146_097) as i64;
    let mut rest = days % 146_097;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if rest < length {
            return (year, rest);
        }
        rest -= length;
        year += 1;
    }
}

/// The month, and the day in it, both from 0.
fn month_of(year: i64, day_of_year: u64) -> (usize, u64) {
    let february = if is_leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut rest = day_of_year;
    for (month, length) in lengths.into_iter().enumerate() {
        if rest < length {
            return (month, rest);
        }
        rest -= length;
    }
    (11, 30)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64, pattern: &str) -> String {
        let now = UNIX_EPOCH + Duration::from_secs(seconds);
        format(now, pattern).expect("the format is supported")
    }

    #[test]
    fn dates_come_out_as_strftime_gives_them() {
        let cases = [
            (
                0,
                "%A %d %B %Y %H:%M:%S",
                "Thursday 01 January 1970 00:00:00",
            ),
            (951_782_400, "%a %F %j", "Tue 2000-02-29 060"),
            (1_709_164_800, "%d %b %Y", "29 Feb 2024"),
            (1_704_067_199, "%D %T %p", "12/31/23 23:59:59 PM"),
            (1_704_067_200, "%-d.%-m.%y %I %e", "1.1.24 12  1"),
            (4_107_542_400, "%Y-%m-%d 100%%", "2100-03-01 100%"),
        ];
        for (seconds, pattern, expected) in cases {
            assert_eq!(at(seconds, pattern), expected);
        }
    }

    #[test]
    fn an_unknown_directive_is_refused() {
        assert!(format(UNIX_EPOCH, "%Q").is_err());
        assert!(format(UNIX_EPOCH, "%").is_err());
        assert!(format(UNIX_EPOCH, &"x".repeat(1000)).is_err());
    }
}
