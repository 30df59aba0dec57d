//! Flags that set limits, of keys and of accounts.

use anyhow::bail;
use clap::Args;
use cxmpute_store::{Db, KeySettings, LimitSubject, Limits};
use cxmpute_wire::{KeyId, MicroCredits, Timestamp, UserId};
use serde_json::{Value, json};

use crate::auth::caller::OWN_KEY;
use crate::router::{Access, ROUTES};

/// Limits. What is not given stays as it is; `none` lifts a limit, `default` takes the configuration's.
#[derive(Args, Default)]
pub struct LimitArgs {
    /// Requests per minute.
    #[arg(long, value_name = "N|none|default")]
    requests_per_minute: Option<String>,
    /// Tokens in and out per minute.
    #[arg(long, value_name = "N|none|default")]
    tokens_per_minute: Option<String>,
    /// Requests for paid work at the same time.
    #[arg(long, value_name = "N|none|default")]
    concurrent: Option<String>,
    /// Most that may be spent in a UTC day.
    #[arg(long, value_name = "CREDITS|none|default")]
    spend_per_day: Option<String>,
    /// Most that may be spent in a UTC month.
    #[arg(long, value_name = "CREDITS|none|default")]
    spend_per_month: Option<String>,
    /// Models that may be used, by id or alias.
    #[arg(long, value_name = "MODEL,...|all", value_delimiter = ',')]
    models: Option<Vec<String>>,
    /// Routes that may be used, such as /chat/completions.
    #[arg(long, value_name = "ROUTE,...|all", value_delimiter = ',')]
    routes: Option<Vec<String>>,
}

/// Settings of a key.
#[derive(Args, Default)]
pub struct SettingArgs {
    /// When the key stops working: a day (2027-01-31, its end in UTC), a span (90d, 12h, 30m) or `never`.
    #[arg(long, value_name = "WHEN|never")]
    expires: Option<String>,
    /// Refuse fields outside the schema instead of dropping them (`--strict=false` ends it).
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    strict: Option<bool>,
    /// End every stream with a usage chunk, asked for or not.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    force_usage: Option<bool>,
}

impl LimitArgs {
    /// Whether any flag was given.
    pub fn any(&self) -> bool {
        self.requests_per_minute.is_some()
            || self.tokens_per_minute.is_some()
            || self.concurrent.is_some()
            || self.spend_per_day.is_some()
            || self.spend_per_month.is_some()
            || self.models.is_some()
            || self.routes.is_some()
    }

    /// The limits after the change.
    ///
    /// # Errors
    /// A value is not one; the message names the flag.
    pub fn change(&self, mut limits: Limits) -> anyhow::Result<Limits> {
        let counts = [
            ("--requests-per-minute", &self.requests_per_minute, &mut limits.requests_per_minute),
            ("--tokens-per-minute", &self.tokens_per_minute, &mut limits.tokens_per_minute),
            ("--concurrent", &self.concurrent, &mut limits.concurrent),
        ];
        for (flag, given, limit) in counts {
            if let Some(text) = given {
                *limit = parse(flag, text, 0, |text| {
                    text.parse().ok().filter(|n| (1..=1_000_000_000_000).contains(n))
                })?;
            }
        }
        let money = [
            ("--spend-per-day", &self.spend_per_day, &mut limits.spend_per_day),
            ("--spend-per-month", &self.spend_per_month, &mut limits.spend_per_month),
        ];
        for (flag, given, limit) in money {
            if let Some(text) = given {
                let amount = |text: &str| MicroCredits::from_credits(text).filter(|amount| amount.0 > 0);
                *limit = parse(flag, text, MicroCredits::ZERO, amount)?;
            }
        }
        if let Some(models) = &self.models {
            limits.models = list("--models", models, |_| true)?;
        }
        if let Some(routes) = &self.routes {
            let known = |path: &str| {
                path != OWN_KEY
                    && ROUTES.iter().any(|route| route.access == Access::Key && route.path == path)
            };
            limits.routes = list("--routes", routes, known)?;
        }
        Ok(limits)
    }

    /// Changes the limits of a subject in the store.
    ///
    /// # Errors
    /// A value is not one; the store failed; there is no such subject.
    pub async fn apply(&self, db: &Db, subject: LimitSubject<'_>) -> anyhow::Result<Limits> {
        let Some(before) = db.limits_of(subject).await? else { bail!("There is no such key or account.") };
        let limits = self.change(before)?;
        if self.any() {
            db.set_limits(subject, &limits).await?;
        }
        Ok(limits)
    }
}

fn parse<T>(flag: &str, text: &str, none: T, read: impl Fn(&str) -> Option<T>) -> anyhow::Result<Option<T>> {
    match text {
        "default" => Ok(None),
        "none" => Ok(Some(none)),
        other => match read(other) {
            Some(value) => Ok(Some(value)),
            None => bail!("{flag} is {other}, expected a number above zero, `none` or `default`."),
        },
    }
}

fn list(flag: &str, given: &[String], known: impl Fn(&str) -> bool) -> anyhow::Result<Option<Vec<String>>> {
    let names: Vec<String> = given.iter().map(|name| name.trim().to_owned()).collect();
    if names == ["all"] {
        return Ok(None);
    }
    match names.iter().find(|name| name.is_empty() || name.len() > 200 || *name == "all" || !known(name)) {
        Some(wrong) => bail!("{flag} has `{wrong}`, which is none; give names that exist, or only `all`."),
        None => Ok(Some(names)),
    }
}

impl SettingArgs {
    /// The settings after the change.
    ///
    /// # Errors
    /// The end is no day and no span.
    pub fn change(&self, mut settings: KeySettings, now: Timestamp) -> anyhow::Result<KeySettings> {
        if let Some(text) = &self.expires {
            settings.expires_at = match text.as_str() {
                "never" => None,
                text => match moment(text, now) {
                    Some(at) => Some(at),
                    None => bail!(
                        "--expires is {text}, expected a day such as 2027-01-31, a span such as 90d, or never."
                    ),
                },
            };
        }
        settings.strict = self.strict.unwrap_or(settings.strict);
        settings.force_usage = self.force_usage.unwrap_or(settings.force_usage);
        Ok(settings)
    }
}

const DAY_MS: i64 = 86_400_000;

/// The end of a day in UTC, or a span from now.
fn moment(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Some((number, unit)) = text.split_at_checked(text.len().saturating_sub(1))
        && let Ok(count) = number.parse::<i64>()
        && let Some(unit) = match unit {
            "d" => Some(DAY_MS),
            "h" => Some(3_600_000),
            "m" => Some(60_000),
            _ => None,
        }
    {
        return Some(count)
            .filter(|count| (1..=1_000_000).contains(count))
            .map(|count| Timestamp(now.0 + count * unit));
    }
    let mut parts = text.split('-').map(str::parse::<i64>);
    let (year, month, day) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = usize::try_from(month - 1).ok().and_then(|at| lengths.get(at))?;
    if parts.next().is_some() || !(2000..=9999).contains(&year) || !(1..=*length).contains(&day) {
        return None;
    }
    let before = year - 1;
    let years = 365 * (year - 1970) + (before / 4 - before / 100 + before / 400)
        - (1969 / 4 - 1969 / 100 + 1969 / 400);
    let months: i64 = lengths.iter().take(usize::try_from(month - 1).ok()?).sum();
    Some(Timestamp((years + months + day) * DAY_MS))
}

/// Limits as they are shown; what takes the default is null, 0 is no limit.
pub fn shown(limits: &Limits) -> Value {
    json!({
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "concurrent": limits.concurrent,
        "spend_per_day_micro": limits.spend_per_day,
        "spend_per_month_micro": limits.spend_per_month,
        "models": limits.models,
        "routes": limits.routes,
    })
}

/// The subject of a key.
pub fn of_key(id: &KeyId) -> LimitSubject<'_> {
    LimitSubject::Key(id)
}

/// The subject of an account.
pub fn of_account(id: &UserId) -> LimitSubject<'_> {
    LimitSubject::Account(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_day_or_a_span() {
        let now = Timestamp(1_000);
        let table = [
            ("1970-01-01", None),
            ("2000-01-01", Some(946_771_200_000)),
            ("2000-02-29", Some(951_868_800_000)),
            ("2026-11-21", Some(1_795_305_600_000)),
            ("2027-02-29", None),
            ("2027-13-01", None),
            ("2027-00-01", None),
            ("2027-01-00", None),
            ("2027-01-01-01", None),
            ("90d", Some(7_776_001_000)),
            ("12h", Some(43_201_000)),
            ("30m", Some(1_801_000)),
            ("0d", None),
            ("-1d", None),
            ("d", None),
            ("", None),
            ("soon", None),
            ("9999999999999999999d", None),
        ];
        for (text, at) in table {
            assert_eq!(moment(text, now).map(|at| at.0), at, "{text}");
        }
    }

    #[test]
    fn flags_change_only_what_they_name() {
        let before = Limits { requests_per_minute: Some(5), concurrent: Some(2), ..Limits::default() };
        let args = LimitArgs {
            requests_per_minute: Some("none".into()),
            spend_per_day: Some("2.5".into()),
            routes: Some(vec!["/chat/completions".into(), "/embeddings".into()]),
            ..LimitArgs::default()
        };
        let after = args.change(before).unwrap();
        assert_eq!(after.requests_per_minute, Some(0));
        assert_eq!(after.concurrent, Some(2));
        assert_eq!(after.spend_per_day, Some(MicroCredits(2_500_000)));
        assert_eq!(after.routes.as_ref().map(Vec::len), Some(2));
        let back = LimitArgs {
            requests_per_minute: Some("default".into()),
            routes: Some(vec!["all".into()]),
            ..LimitArgs::default()
        };
        let after = back.change(after).unwrap();
        assert_eq!((after.requests_per_minute, after.routes), (None, None));
    }

    #[test]
    fn wrong_values_name_their_flag() {
        let wrong = |args: LimitArgs| args.change(Limits::default()).unwrap_err().to_string();
        let concurrent = LimitArgs { concurrent: Some("0".into()), ..LimitArgs::default() };
        assert!(wrong(concurrent).contains("--concurrent"));
        let spend = LimitArgs { spend_per_month: Some("-1".into()), ..LimitArgs::default() };
        assert!(wrong(spend).contains("--spend-per-month"));
        let routes = LimitArgs { routes: Some(vec!["/nothing".into()]), ..LimitArgs::default() };
        assert!(wrong(routes).contains("/nothing"));
        let models = LimitArgs { models: Some(vec!["a".into(), "all".into()]), ..LimitArgs::default() };
        assert!(wrong(models).contains("--models"));
    }
}
