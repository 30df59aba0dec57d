//! Hours of the week, as an owner writes them. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// A moment of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// 0 is Monday.
    pub day: u8,
    /// Since midnight.
    pub minute: u16,
}

/// Days with a span of time; one that ends before it begins ends on the next day.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    days: [bool; 7],
    from: u16,
    to: u16,
}

/// Times of the week; empty means always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hours {
    spans: Vec<Span>,
    text: Vec<String>,
}

impl Hours {
    /// Whether a moment lies within them.
    #[must_use]
    pub fn contains(&self, now: LocalTime) -> bool {
        let yesterday = usize::from((now.day + 6) % 7);
        let today = usize::from(now.day % 7);
        let within = |span: &Span| {
            if span.from < span.to {
                return span.days[today] && (span.from..span.to).contains(&now.minute);
            }
            (span.days[today] && now.minute >= span.from) || (span.days[yesterday] && now.minute < span.to)
        };
        self.spans.is_empty() || self.spans.iter().any(within)
    }
}

impl FromStr for Hours {
    type Err = String;

    /// One entry.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no time such as `mon-fri 18:00-08:00`, `sat,sun` or `22:00-06:00`");
        let lower = text.to_ascii_lowercase();
        let mut words = lower.split_whitespace();
        let (mut days, mut span) = (None, None);
        for word in words.by_ref().take(3) {
            if word.starts_with(|first: char| first.is_ascii_digit()) {
                let (from, to) = word.split_once('-').ok_or_else(wrong)?;
                let times = (minute(from).ok_or_else(wrong)?, minute(to).ok_or_else(wrong)?);
                if span.replace(times).is_some() {
                    return Err(wrong());
                }
            } else if days.replace(week(word).ok_or_else(wrong)?).is_some() {
                return Err(wrong());
            }
        }
        if words.next().is_some() || (days.is_none() && span.is_none()) {
            return Err(wrong());
        }
        let (from, to) = span.unwrap_or((0, DAY));
        if from == to || from >= DAY || to == 0 {
            return Err(wrong());
        }
        let span = Span { days: days.unwrap_or([true; 7]), from, to };
        Ok(Self { spans: vec![span], text: vec![text.to_owned()] })
    }
}

/// `mon`, `mon-fri`, `sat,sun`, `fri-mon`.
fn week(word: &str) -> Option<[bool; 7]> {
    let place = |name: &str| DAYS.iter().position(|day| name == *day);
    let mut days = [false; 7];
    for part in word.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (place(first)?, place(last)?);
        let mut day = first;
        loop {
            days[day] = true;
            if day == last {
                break;
            }
            day = (day + 1) % 7;
        }
    }
    Some(days)
}

/// `18:00`, up to `24:00`.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| text.len() == 2);
    let (hour, minute) = (number(hour)?, number(minute)?);
    let whole = hour * 60 + minute;
    (hour <= 24 && minute < 60 && whole <= DAY).then_some(whole)
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text.join("; "))
    }
}

impl Serialize for Hours {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Hours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut all = Self::default();
        for text in Vec::<String>::deserialize(deserializer)? {
            let one: Self = text.parse().map_err(de::Error::custom)?;
            all.spans.extend(one.spans);
            all.text.extend(one.text);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: &str, time: &str) -> LocalTime {
        let day = u8::try_from(DAYS.iter().position(|name| *name == day).unwrap()).unwrap();
        LocalTime { day, minute: minute(time).unwrap() }
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins() {
        let hours: Hours = "mon-fri 18:00-08:00".parse().unwrap();
        for (day, time, inside) in [
            ("mon", "17:59", false),
            ("mon", "18:00", true),
            ("tue", "07:59", true),
            ("tue", "08:00", false),
            ("sat", "07:00", true),
            ("sat", "18:00", false),
            ("mon", "07:00", false),
        ] {
            assert_eq!(hours.contains(at(day, time)), inside, "{day} {time}");
        }
    }

    #[test]
    fn days_and_times_may_stand_alone_and_go_around_the_week() {
        let of = |text: &str| text.parse::<Hours>().unwrap();
        assert!(of("sat,sun").contains(at("sun", "23:59")) && !of("sat,sun").contains(at("mon", "00:00")));
        assert!(
            of("22:00-24:00").contains(at("wed", "23:59")) && !of("22:00-24:00").contains(at("wed", "21:59"))
        );
        assert!(of("Fri-Mon 09:00-10:00").contains(at("sun", "09:30")));
        assert!(!of("Fri-Mon 09:00-10:00").contains(at("tue", "09:30")));
        assert!(Hours::default().contains(at("tue", "09:30")), "no hours are all hours");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            "",
            "mon tue",
            "8-9",
            "08:00",
            "25:00-26:00",
            "08:00-08:00",
            "mon-xyz",
            "08:60-09:00",
            "mon 1:00-2:00",
            "mon 08:00-09:00 extra",
            "08:00-09:00 10:00-11:00",
            "24:00-08:00",
            "08:00-00:00",
        ] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }
}
