//! How a person types one phrase they know by heart: times held and times between, one row a repetition.
//!
//! A repetition is far from the person when its times are, each measured by this person's own spread.
//! Which keys they were is never known, only in which order the times come. Must not know: files, users'
//! names, how forests are grown.

use crate::stats::median;
use std::collections::BTreeMap;
use thiserror::Error;

/// Most times of one repetition: what a forest over two views of each can address.
pub const COLUMNS_MAX: usize = 56;
/// Most repetitions of one file; ten times the largest public one.
pub const REPETITIONS_MAX: usize = 250_000;
/// Fewest repetitions a person is learnt from.
pub const REPETITIONS_MIN: usize = 10;
/// Latest repetitions a person's usual times are taken from: a hand still gets quicker after hundreds.
pub const RECENT: usize = 80;

/// One repetition of a phrase.
#[derive(Clone, Debug, PartialEq)]
pub struct Repetition {
    pub user: String,
    pub number: u32,
    /// Times in seconds, in the order of the file's columns; negative where keys overlap.
    pub times: Vec<f32>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum TypingError {
    #[error("line {line}: {what}")]
    Line { line: usize, what: &'static str },
    #[error("more than {REPETITIONS_MAX} repetitions")]
    TooLong,
}

/// Reads repetitions: a header with `user`, `rep` and any other columns, which are times in seconds; then a row each.
pub fn parse_repetitions(text: &str) -> Result<Vec<Repetition>, TypingError> {
    let fail = |line, what| TypingError::Line { line, what };
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().trim_end().split(',').collect();
    let column = |name: &str| header.iter().position(|field| *field == name);
    let (Some(user), Some(number)) = (column("user"), column("rep")) else {
        return Err(fail(1, "a column of user, rep is missing"));
    };
    if !(3..=COLUMNS_MAX + 2).contains(&header.len()) {
        return Err(fail(1, "beside user and rep there must be 1 to 56 columns of times"));
    }
    let mut repetitions = Vec::new();
    for (i, line) in lines.enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row: Vec<&str> = line.trim_end().split(',').collect();
        if row.len() != header.len() {
            return Err(fail(i + 2, "the row is not as long as the header"));
        }
        let time = |text: &str| text.parse::<f32>().ok().filter(|time| time.abs() <= TIME_S_MAX);
        let times = row.iter().enumerate().filter(|(i, _)| *i != user && *i != number);
        let times = times.map(|(_, text)| time(text)).collect::<Option<Vec<f32>>>();
        if repetitions.len() == REPETITIONS_MAX {
            return Err(TypingError::TooLong);
        }
        repetitions.push(Repetition {
            user: row[user].to_string(),
            number: row[number].parse().map_err(|_| fail(i + 2, "rep is not a whole number"))?,
            times: times.ok_or(fail(i + 2, "a time is not a number of seconds within an hour"))?,
        });
    }
    Ok(repetitions)
}

/// A person's usual times for a phrase, alone, without knowing anybody else.
#[derive(Clone, Debug, PartialEq)]
pub struct Usual {
    /// Median and spread of each time.
    times: Vec<(f32, f32)>,
}

impl Usual {
    /// From a person's repetitions, oldest first; the latest [`RECENT`] count. `None` for fewer than
    /// [`REPETITIONS_MIN`], or rows of different lengths.
    pub fn fit(rows: &[Vec<f32>]) -> Option<Usual> {
        let columns = rows.first()?.len();
        if rows.len() < REPETITIONS_MIN || rows.iter().any(|row| row.len() != columns) {
            return None;
        }
        let recent = &rows[rows.len().saturating_sub(RECENT)..];
        let spread = |i: usize| {
            let mut values: Vec<f32> = recent.iter().map(|row| row[i]).collect();
            let middle = median(&mut values);
            values.iter_mut().for_each(|value| *value = (*value - middle).abs());
            // 1.4826 makes it the standard deviation of what is normally distributed.
            (middle, 1.4826 * median(&mut values) + SPREAD_MIN)
        };
        Some(Usual { times: (0..columns).map(spread).collect() })
    }

    /// Mean distance from the usual times, each in this person's own spreads and none counting for
    /// more than `CLIP`: one slip of a finger is not somebody else.
    pub fn distance(&self, row: &[f32]) -> f32 {
        self.deviations(row).map(|z| z.abs().min(CLIP)).sum::<f32>() / self.times.len() as f32
    }

    /// Signed distance of each time, in spreads.
    pub fn deviations<'a>(&'a self, row: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
        self.times.iter().zip(row).map(|((middle, spread), value)| (value - middle) / spread)
    }

    /// Spread of each time.
    pub fn spreads(&self) -> impl Iterator<Item = f32> + '_ {
        self.times.iter().map(|(_, spread)| *spread)
    }
}

/// Times on a scale of proportions, on which a hesitation of a second does not rule; overlapping keys
/// have negative times.
pub fn proportions(times: &[f32]) -> Vec<f32> {
    times.iter().map(|time| (time.max(-0.2) + 0.25).ln()).collect()
}

/// Spreads beyond which a single time tells no more.
pub(crate) const CLIP: f32 = 4.0;
/// A spread is at least this: timers tick in milliseconds.
const SPREAD_MIN: f32 = 1e-3;
const TIME_S_MAX: f32 = 3600.0;

/// The same table with `user` for `subject`, without `sessionIndex`, and each user's repetitions numbered through from 0.
pub fn as_repetitions(text: &str) -> Result<String, TypingError> {
    let mut lines = text.lines();
    let header: Vec<&str> =
        lines.next().unwrap_or_default().trim_end().split(',').map(|field| field.trim_matches('"')).collect();
    let kept: Vec<usize> = (0..header.len()).filter(|&i| header[i] != "sessionIndex").collect();
    let named = |name: &[&str]| header.iter().position(|field| name.contains(field));
    let (Some(user), Some(rep)) = (named(&["subject", "user"]), named(&["rep"])) else {
        return Err(TypingError::Line { line: 1, what: "a column of subject (or user), rep is missing" });
    };
    let name = |i: &usize| if *i == user { "user" } else { header[*i] };
    let mut table = kept.iter().map(name).collect::<Vec<_>>().join(",");
    let mut repetitions: BTreeMap<&str, u32> = BTreeMap::new();
    for (i, line) in lines.enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row: Vec<&str> = line.trim_end().split(',').map(|field| field.trim_matches('"')).collect();
        if row.len() != header.len() {
            return Err(TypingError::Line { line: i + 2, what: "the row is not as long as the header" });
        }
        let count = repetitions.entry(row[user]).or_default();
        let number = count.to_string();
        *count += 1;
        let field = |i: &usize| if *i == rep { number.as_str() } else { row[*i] };
        table.push('\n');
        table += &kept.iter().map(field).collect::<Vec<_>>().join(",");
    }
    table.push('\n');
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_and_a_mistake_names_its_line() {
        let rows = parse_repetitions("user,rep,H.a,UD.a.b\nann,0,0.1,-0.02\n").unwrap();
        assert_eq!(rows, [Repetition { user: "ann".into(), number: 0, times: vec![0.1, -0.02] }]);
        let error = |text: &str| parse_repetitions(text).unwrap_err().to_string();
        assert_eq!(error("who,rep,H\n"), "line 1: a column of user, rep is missing");
        assert_eq!(
            error("user,rep,H\nann,0,NaN\n"),
            "line 2: a time is not a number of seconds within an hour"
        );
        assert_eq!(error("user,rep,H\nann,0,1,2\n"), "line 2: the row is not as long as the header");
        assert_eq!(error("user,rep,H\nann,x,1\n"), "line 2: rep is not a whole number");
    }

    #[test]
    fn a_slip_counts_but_does_not_rule() {
        let rows: Vec<Vec<f32>> =
            (0..40).map(|i| vec![0.1 + 0.001 * (i % 5) as f32, 0.2 - 0.001 * (i % 7) as f32]).collect();
        let usual = Usual::fit(&rows).unwrap();
        let own = usual.distance(&[0.102, 0.197]);
        let slip = usual.distance(&[0.102, 3.0]);
        let other = usual.distance(&[0.2, 0.4]);
        assert!(own < 1.0 && own < slip && slip < other, "{own} {slip} {other}");
        assert_eq!(Usual::fit(&rows[..REPETITIONS_MIN - 1]), None);
    }
}
