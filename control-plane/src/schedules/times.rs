//! When a schedule's times are.

use std::time::Duration;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, tz::TimeZone};
use parallax_runtime::nearest::nearest;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The rule that names the times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Times {
    /// Five fields (minute, hour, day of month, month, day of week) by the clocks of an IANA time zone. A time that a
    /// clock change leaves out comes when the clocks go on; one that it brings twice comes once.
    Cron { expression: String, time_zone: String },
    /// Every so often, counted from the schedule's creation.
    Every(Duration),
}

impl Times {
    /// # Errors
    /// Whatever keeps the rule from naming times, with the field.
    pub(super) fn check(&self, now: Timestamp) -> Result<()> {
        match self {
            Self::Every(every) if *every < Duration::from_secs(1) => {
                invalid("intervalSeconds", "0 is no interval; it is at least 1".to_owned())
            }
            Self::Every(every) if self.after(now, now).is_none() => {
                invalid("intervalSeconds", format!("{} never comes", every.as_secs()))
            }
            Self::Every(_) => Ok(()),
            Self::Cron { expression, time_zone } => {
                if TimeZone::get(time_zone).is_err() {
                    let known: Vec<_> =
                        jiff::tz::db().available().map(|name| name.as_str().to_owned()).collect();
                    let near = nearest(time_zone, known.iter().map(String::as_str));
                    let hint =
                        near.first().map_or_else(String::new, |near| format!("; did you mean {near}?"));
                    return invalid("timeZone", format!("\"{time_zone}\" is no IANA time zone{hint}"));
                }
                match parse(expression).map_err(|e| e.to_string()) {
                    Err(e) => invalid("cron", format!("\"{expression}\": {e}")),
                    Ok(_) if self.after(now, now).is_none() => {
                        invalid("cron", format!("\"{expression}\" never comes"))
                    }
                    Ok(_) => Ok(()),
                }
            }
        }
    }

    /// The first time after `time`.
    pub(super) fn after(&self, created: Timestamp, time: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(every) => {
                let (every, since) = (seconds(*every)?, time.as_second().checked_sub(created.as_second())?);
                let next = since.div_euclid(every) + 1;
                Timestamp::from_second(created.as_second().checked_add(next.checked_mul(every)?)?).ok()
            }
            Self::Cron { expression, time_zone } => {
                let (cron, zone) = (parse(expression).ok()?, TimeZone::get(time_zone).ok()?);
                let next = cron.find_next_occurrence(&time.to_zoned(zone), false).ok()?;
                Some(next.timestamp()).filter(|next| *next > time)
            }
        }
    }

    /// The last times after `from`, up to `until` and up to `most` of them, oldest first.
    pub(super) fn between(
        &self,
        created: Timestamp,
        from: Timestamp,
        until: Timestamp,
        most: usize,
    ) -> Vec<Timestamp> {
        let mut times: Vec<_> = match self {
            Self::Every(every) => {
                let (every, first) = (seconds(*every).unwrap_or(i64::MAX), created.as_second());
                let last = first + (until.as_second() - first).div_euclid(every) * every;
                let back = std::iter::successors(Some(last), |time| time.checked_sub(every));
                back.map_while(|time| Timestamp::from_second(time).ok())
                    .take_while(|time| *time > from)
                    .take(most)
                    .collect()
            }
            Self::Cron { expression, time_zone } => {
                let (Ok(cron), Ok(zone)) = (parse(expression), TimeZone::get(time_zone)) else {
                    return vec![];
                };
                let previous = |time: &jiff::Zoned, same| cron.find_previous_occurrence(time, same).ok();
                let last = previous(&until.to_zoned(zone), true);
                let back = std::iter::successors(last, |time| previous(time, false));
                back.map(|time| time.timestamp()).take_while(|time| *time > from).take(most).collect()
            }
        };
        times.reverse();
        times
    }
}

fn seconds(every: Duration) -> Option<i64> {
    i64::try_from(every.as_secs()).ok().filter(|seconds| *seconds > 0)
}

fn invalid(field: &'static str, problem: String) -> Result<()> {
    Err(Error::Invalid { field, problem })
}

fn parse(expression: &str) -> Result<Cron, croner::errors::CronError> {
    CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build().parse(expression)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn cron(expression: &str, time_zone: &str) -> Times {
        Times::Cron { expression: expression.to_owned(), time_zone: time_zone.to_owned() }
    }

    #[test]
    fn an_interval_counts_from_the_beginning() {
        let (times, created) = (Times::Every(Duration::from_secs(60)), at("2026-01-01T00:00:30Z"));
        let next = |time| times.after(created, at(time)).unwrap();
        assert_eq!(next("2026-01-01T00:00:30Z"), at("2026-01-01T00:01:30Z"));
        assert_eq!(next("2026-01-01T00:05:29.5Z"), at("2026-01-01T00:05:30Z"));
        let between = times.between(created, at("2026-01-01T00:01:30Z"), at("2026-01-01T00:04:00Z"), 9);
        assert_eq!(between, [at("2026-01-01T00:02:30Z"), at("2026-01-01T00:03:30Z")]);
        let last = times.between(created, created, at("2027-01-01T00:00:00Z"), 2);
        assert_eq!(last, [at("2026-12-31T23:58:30Z"), at("2026-12-31T23:59:30Z")]);
    }

    #[test]
    fn a_cron_goes_by_the_clocks_of_its_zone() {
        let berlin = cron("30 2 * * *", "Europe/Berlin");
        let next = |time| berlin.after(at(time), at(time)).unwrap();
        assert_eq!(next("2026-01-01T00:00:00Z"), at("2026-01-01T01:30:00Z"));
        assert_eq!(next("2026-07-01T00:29:00Z"), at("2026-07-01T00:30:00Z"), "in summer an hour earlier");
        // Half past two is not there, or there twice, on the days on which the clocks change. It comes once, and is the
        // same seen from before and from after.
        for (from, until) in [
            ("2026-03-28T12:00:00Z", "2026-03-30T12:00:00Z"),
            ("2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z"),
        ] {
            let (from, until) = (at(from), at(until));
            let forth = std::iter::successors(berlin.after(from, from), |time| berlin.after(from, *time));
            let forth: Vec<_> = forth.take_while(|time| *time <= until).collect();
            assert_eq!((forth.len(), berlin.between(from, from, until, 9)), (2, forth));
        }
    }

    #[test]
    fn what_names_no_time_is_refused() {
        let now = at("2026-01-01T00:00:00Z");
        let refused = |times: Times| times.check(now).unwrap_err().to_string();
        assert!(refused(cron("* * * *", "UTC")).starts_with("cron: \"* * * *\": "));
        assert!(refused(cron("0 0 30 2 *", "UTC")).contains("never comes"));
        assert!(refused(cron("* * * * * *", "UTC")).starts_with("cron: "));
        assert_eq!(
            refused(cron("* * * * *", "Europe/Berlim")),
            "timeZone: \"Europe/Berlim\" is no IANA time zone; did you mean Europe/Berlin?"
        );
        assert!(refused(Times::Every(Duration::ZERO)).starts_with("intervalSeconds: "));
        cron("*/5 9-17 * * MON-FRI", "America/New_York").check(now).unwrap();
    }
}
