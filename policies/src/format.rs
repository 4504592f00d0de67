//! White space of a policy file, made regular: what `gaitway policy fmt` does.
//!
//! Only white space moves: line ends, trailing blanks, runs of empty lines. A result that does not
//! read as the very same tree is refused, so formatting can never change a policy.

use crate::document::{Document, Mistake, Node, Value};

/// The regular form of `yaml`, or why it cannot be had.
pub fn format(file: &str, yaml: &str) -> Result<String, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let before = Document::parse(&mut mistakes, file, yaml);
    let Some(before) = before.filter(|_| mistakes.is_empty()) else { return Err(mistakes) };
    let mut formatted = String::with_capacity(yaml.len());
    let mut empty = 0;
    for line in yaml.lines() {
        let line = line.trim_end();
        if line.is_empty() {
            empty += 1;
            continue;
        }
        if empty > 0 && !formatted.is_empty() {
            formatted.push('\n');
        }
        empty = 0;
        formatted.push_str(line);
        formatted.push('\n');
    }
    let after = Document::parse(&mut mistakes, file, &formatted);
    match after {
        Some(after) if mistakes.is_empty() && same(&before.root, &after.root) => Ok(formatted),
        // White space that means something, inside a block of text: leave the file alone.
        _ => Ok(yaml.to_owned()),
    }
}

fn same(left: &Node, right: &Node) -> bool {
    match (&left.value, &right.value) {
        (Value::Scalar { text: left, plain: a, .. }, Value::Scalar { text: right, plain: b, .. }) => {
            left == right && a == b
        }
        (Value::Sequence(left), Value::Sequence(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Mapping(left), Value::Mapping(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|(left, right)| left.key == right.key && same(&left.node, &right.node))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_white_space_moves() {
        let untidy = "\n\n# note  \r\nrules:   \n\n\n\n  - name: a\t\n    when: 'a'\n\n\n";
        let tidy = "# note\nrules:\n\n  - name: a\n    when: 'a'\n";
        assert_eq!(format("f", untidy).unwrap(), tidy);
        assert_eq!(format("f", tidy).unwrap(), tidy);
    }

    #[test]
    fn a_file_whose_white_space_means_something_stays() {
        let block = "a: |\n  one  \n\n\n\n  two\n";
        assert_eq!(format("f", block).unwrap(), block);
        assert!(format("f", "a: [").is_err());
    }

    #[test]
    fn the_shipped_policies_are_formatted() {
        for yaml in [crate::policy::DEFAULT, crate::policy::DEMO] {
            assert_eq!(format("f", yaml).unwrap(), yaml);
        }
    }
}
