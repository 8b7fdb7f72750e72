//! Dates in the format language of C, for chat templates that write today's.

use std::time::{SystemTime, UNIX_EPOCH};

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
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Seconds since 1970 by this machine's clock.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs() as i64)
}

/// Writes a moment (seconds since 1970, UTC) in a `strftime` format. Directives that no template is known to use stay
/// as they are.
pub(crate) fn strftime(format: &str, seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let weekday = (days + 3).rem_euclid(7) as usize;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let half = if hour % 12 == 0 { 12 } else { hour % 12 };
    let of_year = days - days_from_civil(year, 1, 1) + 1;

    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut directive = letters.next();
        // GNU's `%-d`: without the leading zero.
        let plain = directive == Some('-');
        if plain {
            directive = letters.next();
        }
        let number = |value: i64, width: usize| if plain { value.to_string() } else { format!("{value:0width$}") };
        match directive {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &number(year.rem_euclid(100), 2),
            Some('m') => out += &number(month, 2),
            Some('d') => out += &number(day, 2),
            Some('e') => out += &format!("{day:2}"),
            Some('j') => out += &number(of_year, 3),
            Some('H') => out += &number(hour, 2),
            Some('I') => out += &number(half, 2),
            Some('M') => out += &number(minute, 2),
            Some('S') => out += &number(second, 2),
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('B') => out += MONTHS[month as usize - 1],
            Some('b' | 'h') => out += &MONTHS[month as usize - 1][..3],
            Some('A') => out += DAYS[weekday],
            Some('a') => out += &DAYS[weekday][..3],
            Some('F') => out += &strftime("%Y-%m-%d", seconds),
            Some('T') => out += &strftime("%H:%M:%S", seconds),
            Some('Z') => out += "UTC",
            Some('z') => out += "+0000",
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month, day of a day counted from 1970-01-01. Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day_of_year - (153 * from_march + 2) / 5 + 1)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    let year_of_era = year.rem_euclid(400);
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_python() {
        // datetime.fromtimestamp(s, timezone.utc).strftime("%d %b %Y|%A %B %-d|%j|%I:%M:%S %p|%y")
        let format = "%d %b %Y|%A %B %-d|%j|%I:%M:%S %p|%y";
        assert_eq!(strftime(format, 1_721_952_000), "26 Jul 2024|Friday July 26|208|12:00:00 AM|24");
        assert_eq!(strftime(format, 951_782_400 + 45_296), "29 Feb 2000|Tuesday February 29|060|12:34:56 PM|00");
        assert_eq!(strftime(format, -1), "31 Dec 1969|Wednesday December 31|365|11:59:59 PM|69");
        assert_eq!(strftime("%F %T %% %q %", 0), "1970-01-01 00:00:00 % %q %");
        assert!(now() > 1_700_000_000);
    }
}
