//! The CEL of `when:`: parsed by the `cel` crate, checked and compiled here over the fixed facts.
//!
//! A policy needs a small, total part of CEL, and needs its mistakes found before it runs; so names
//! and types are checked when the file is read, and what is left is a typed tree that reads facts in
//! place: no allocation, no unknown name, cost bounded by the text. A test holds its answers against
//! the `cel` crate's own interpreter. Must not know: rules, actions, sessions.

use crate::document::nearest;
use crate::facts::{FACTS, FactKind, FactValue, Facts, find};
use cel::common::ast::{Expr, IdedExpr, LiteralValue, SourceInfo, operators};
use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// Longest condition, in bytes: a screen full.
pub const CONDITION_BYTES_MAX: usize = 4096;
/// Deepest nesting of a condition; a person stops reading long before.
pub const CONDITION_DEPTH_MAX: usize = 48;

/// A checked condition.
#[derive(Clone, Debug)]
pub struct Condition {
    source: String,
    test: Test,
}

impl PartialEq for Condition {
    /// Same meaning piece by piece; spelling does not count.
    fn eq(&self, other: &Condition) -> bool {
        self.test == other.test
    }
}

/// A mistake in a condition, `offset` bytes into its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub offset: usize,
    pub message: String,
    pub hint: Option<String>,
}

/// What can still go wrong with checked arithmetic; such a condition does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    #[error("whole-number arithmetic overflows")]
    Overflow,
    #[error("division by zero")]
    DivisionByZero,
    #[error("compares the result of 0.0 / 0.0 or the like")]
    NotANumber,
}

impl Condition {
    pub fn compile(source: &str) -> Result<Condition, Vec<Fault>> {
        if source.len() > CONDITION_BYTES_MAX {
            return Err(vec![Fault::new(0, format!("longer than {CONDITION_BYTES_MAX} bytes"))]);
        }
        if nesting(source) > CONDITION_DEPTH_MAX {
            return Err(vec![Fault::new(0, format!("nested deeper than {CONDITION_DEPTH_MAX} levels"))]);
        }
        // Macros stay calls: `exists` and `all` are checked as what they are, not as loops.
        let parser = cel::Env::default().with_optional_support(false).parser();
        let (root, places) = match parser.parse_with_source_info(source) {
            Ok(parsed) => parsed,
            Err(errors) => {
                return Err(errors
                    .errors
                    .iter()
                    .map(|error| Fault {
                        offset: offset_of(source, error.pos),
                        message: format!("not CEL: {}", error.msg),
                        hint: None,
                    })
                    .collect());
            }
        };
        let mut checker = Checker { places, faults: Vec::new(), variable: None, depth: 0 };
        let test = checker.test(&root);
        match test {
            Some(test) if checker.faults.is_empty() => {
                Ok(Condition { source: source.trim().to_owned(), test })
            }
            _ => Err(checker.faults),
        }
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the condition holds for these facts.
    pub fn holds(&self, facts: &Facts) -> Result<bool, ConditionError> {
        self.test.holds(&Scope { facts, variable: "" })
    }

    /// The facts it names, as positions in the table.
    pub fn names(&self) -> BTreeSet<usize> {
        let mut names = BTreeSet::new();
        self.test.names(&mut names);
        names
    }

    /// The texts that the fact `name` is compared with.
    pub fn words(&self, name: &str) -> Vec<&str> {
        let mut words = Vec::new();
        if let Some(fact) = find(name) {
            self.test.words(fact, &mut words);
        }
        words
    }

    /// Why no facts at all can satisfy it, if that can be seen.
    pub fn never(&self) -> Option<String> {
        self.test.never()
    }

    /// True if every session satisfies it.
    pub fn always(&self) -> bool {
        self.test.always()
    }

    /// True if whatever satisfies `other` visibly satisfies this one: all parts of this conjunction are parts of that.
    pub fn covers(&self, other: &Condition) -> bool {
        let others = other.test.conjuncts();
        self.test.always() || self.test.conjuncts().iter().all(|part| others.contains(part))
    }
}

impl Fault {
    fn new(offset: usize, message: impl Into<String>) -> Fault {
        Fault { offset, message: message.into(), hint: None }
    }
}

/// A boolean expression.
#[derive(Clone, Debug, PartialEq)]
enum Test {
    Const(bool),
    Fact(usize),
    Not(Box<Test>),
    And(Box<Test>, Box<Test>),
    Or(Box<Test>, Box<Test>),
    If(Box<(Test, Test, Test)>),
    Numbers(Relation, Number, Number),
    Texts(Relation, Text, Text),
    Tests(Relation, Box<(Test, Test)>),
    Search(Search, Text, Text),
    Listed(Text, List),
    Within(Vec<Network>),
    Quantified { every: bool, list: List, test: Box<Test> },
}

#[derive(Clone, Debug, PartialEq)]
enum Number {
    Const(Amount),
    Fact(usize),
    Negate(Box<Number>),
    Math(Math, Box<(Number, Number)>),
    ToDouble(Box<Number>),
    Length(Text),
    Count(List),
    If(Box<(Test, Number, Number)>),
}

#[derive(Clone, Debug, PartialEq)]
enum Text {
    Const(String),
    Fact(usize),
    /// The element under `exists` or `all`.
    Variable,
}

#[derive(Clone, Debug, PartialEq)]
enum List {
    Fact(usize),
    Const(Vec<Text>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    Int(i64),
    Double(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Search {
    StartsWith,
    EndsWith,
    Contains,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Math {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// What an expression turned out to be.
enum Typed {
    Test(Test),
    Number(Number),
    Text(Text),
    List(List),
}

struct Scope<'s> {
    facts: &'s Facts,
    variable: &'s str,
}

// ---- evaluation ----

impl Test {
    fn holds(&self, scope: &Scope<'_>) -> Result<bool, ConditionError> {
        match self {
            Test::Const(value) => Ok(*value),
            Test::Fact(fact) => Ok(matches!((FACTS[*fact].get)(scope.facts), FactValue::Bool(true))),
            Test::Not(test) => Ok(!test.holds(scope)?),
            // As CEL has it, an error on one side is forgiven if the other side decides alone.
            Test::And(left, right) => match left.holds(scope) {
                Ok(false) => Ok(false),
                Ok(true) => right.holds(scope),
                Err(error) => match right.holds(scope) {
                    Ok(false) => Ok(false),
                    _ => Err(error),
                },
            },
            Test::Or(left, right) => match left.holds(scope) {
                Ok(true) => Ok(true),
                Ok(false) => right.holds(scope),
                Err(error) => match right.holds(scope) {
                    Ok(true) => Ok(true),
                    _ => Err(error),
                },
            },
            Test::If(parts) => {
                if parts.0.holds(scope)? {
                    parts.1.holds(scope)
                } else {
                    parts.2.holds(scope)
                }
            }
            Test::Numbers(relation, left, right) => {
                let ordering = left.amount(scope)?.compared(right.amount(scope)?);
                // Equality with what is no number is false; whether it is more or less has no answer.
                if ordering.is_none() && !matches!(relation, Relation::Equal | Relation::Unequal) {
                    return Err(ConditionError::NotANumber);
                }
                Ok(relation.of(ordering))
            }
            Test::Texts(relation, left, right) => {
                Ok(relation.of(Some(left.text(scope).cmp(right.text(scope)))))
            }
            Test::Tests(relation, sides) => {
                Ok(relation.of(Some(sides.0.holds(scope)?.cmp(&sides.1.holds(scope)?))))
            }
            Test::Search(search, text, part) => {
                let (text, part) = (text.text(scope), part.text(scope));
                Ok(match search {
                    Search::StartsWith => text.starts_with(part),
                    Search::EndsWith => text.ends_with(part),
                    Search::Contains => text.contains(part),
                })
            }
            Test::Listed(text, list) => {
                let text = text.text(scope);
                Ok(list.texts(scope).any(|item| item == text))
            }
            Test::Within(networks) => {
                let Ok(address) = IpAddr::from_str(&scope.facts.net_ip) else { return Ok(false) };
                Ok(networks.iter().any(|network| network.contains(address)))
            }
            Test::Quantified { every, list, test } => {
                let mut failure = None;
                for variable in list.texts(scope) {
                    match test.holds(&Scope { facts: scope.facts, variable }) {
                        Ok(holds) if holds != *every => return Ok(holds),
                        Ok(_) => {}
                        Err(error) => failure = Some(error),
                    }
                }
                failure.map_or(Ok(*every), Err)
            }
        }
    }
}

impl Number {
    fn amount(&self, scope: &Scope<'_>) -> Result<Amount, ConditionError> {
        Ok(match self {
            Number::Const(amount) => *amount,
            Number::Fact(fact) => match (FACTS[*fact].get)(scope.facts) {
                FactValue::Int(whole) => Amount::Int(whole),
                FactValue::Double(number) if number.is_finite() => Amount::Double(number),
                _ => Amount::Double(0.0),
            },
            Number::Negate(number) => match number.amount(scope)? {
                Amount::Int(whole) => Amount::Int(whole.checked_neg().ok_or(ConditionError::Overflow)?),
                Amount::Double(number) => Amount::Double(-number),
            },
            Number::Math(math, sides) => math.of(sides.0.amount(scope)?, sides.1.amount(scope)?)?,
            Number::ToDouble(number) => match number.amount(scope)? {
                Amount::Int(whole) => Amount::Double(whole as f64),
                double => double,
            },
            Number::Length(text) => whole(text.text(scope).chars().count()),
            Number::Count(list) => whole(list.texts(scope).count()),
            Number::If(parts) => {
                if parts.0.holds(scope)? {
                    parts.1.amount(scope)?
                } else {
                    parts.2.amount(scope)?
                }
            }
        })
    }

    fn is_double(&self) -> bool {
        match self {
            Number::Const(amount) => matches!(amount, Amount::Double(_)),
            Number::Fact(fact) => matches!(FACTS[*fact].kind, FactKind::Double { .. }),
            Number::Negate(number) => number.is_double(),
            Number::Math(_, sides) => sides.0.is_double(),
            Number::ToDouble(_) => true,
            Number::Length(_) | Number::Count(_) => false,
            Number::If(parts) => parts.1.is_double(),
        }
    }
}

fn whole(count: usize) -> Amount {
    Amount::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

impl Amount {
    fn compared(self, other: Amount) -> Option<std::cmp::Ordering> {
        match (self, other) {
            (Amount::Int(left), Amount::Int(right)) => Some(left.cmp(&right)),
            (left, right) => left.double().partial_cmp(&right.double()),
        }
    }

    fn double(self) -> f64 {
        match self {
            Amount::Int(whole) => whole as f64,
            Amount::Double(number) => number,
        }
    }
}

impl Math {
    fn of(self, left: Amount, right: Amount) -> Result<Amount, ConditionError> {
        let (Amount::Int(left), Amount::Int(right)) = (left, right) else {
            let (left, right) = (left.double(), right.double());
            return Ok(Amount::Double(match self {
                Math::Add => left + right,
                Math::Subtract => left - right,
                Math::Multiply => left * right,
                Math::Divide => left / right,
                Math::Remainder => left % right,
            }));
        };
        if right == 0 && matches!(self, Math::Divide | Math::Remainder) {
            return Err(ConditionError::DivisionByZero);
        }
        match self {
            Math::Add => left.checked_add(right),
            Math::Subtract => left.checked_sub(right),
            Math::Multiply => left.checked_mul(right),
            Math::Divide => left.checked_div(right),
            Math::Remainder => left.checked_rem(right),
        }
        .map(Amount::Int)
        .ok_or(ConditionError::Overflow)
    }
}

impl Text {
    fn text<'s>(&'s self, scope: &Scope<'s>) -> &'s str {
        match self {
            Text::Const(text) => text,
            Text::Variable => scope.variable,
            Text::Fact(fact) => match (FACTS[*fact].get)(scope.facts) {
                FactValue::Text(text) => text,
                _ => "",
            },
        }
    }
}

impl List {
    fn texts<'s>(&'s self, scope: &Scope<'s>) -> impl Iterator<Item = &'s str> {
        let (facts, constants): (&[String], &[Text]) = match self {
            List::Fact(fact) => match (FACTS[*fact].get)(scope.facts) {
                FactValue::List(items) => (items, &[]),
                _ => (&[], &[]),
            },
            List::Const(items) => (&[], items),
        };
        let inner = Scope { facts: scope.facts, variable: scope.variable };
        facts.iter().map(String::as_str).chain(constants.iter().map(move |item| item.text(&inner)))
    }
}

impl Relation {
    fn of(self, ordering: Option<std::cmp::Ordering>) -> bool {
        // A number that is none compares as unequal and as nothing else.
        let Some(ordering) = ordering else { return self == Relation::Unequal };
        match self {
            Relation::Equal => ordering.is_eq(),
            Relation::Unequal => ordering.is_ne(),
            Relation::Less => ordering.is_lt(),
            Relation::LessOrEqual => ordering.is_le(),
            Relation::Greater => ordering.is_gt(),
            Relation::GreaterOrEqual => ordering.is_ge(),
        }
    }

    fn flipped(self) -> Relation {
        match self {
            Relation::Less => Relation::Greater,
            Relation::LessOrEqual => Relation::GreaterOrEqual,
            Relation::Greater => Relation::Less,
            Relation::GreaterOrEqual => Relation::LessOrEqual,
            same => same,
        }
    }
}

// ---- checking ----

struct Checker {
    places: SourceInfo,
    faults: Vec<Fault>,
    /// Name bound by the `exists` or `all` around.
    variable: Option<String>,
    depth: usize,
}

const FUNCTIONS: &[&str] =
    &["startsWith", "endsWith", "contains", "exists", "all", "size", "double", "net.within", "within"];

impl Checker {
    fn fault<T>(&mut self, expr: &IdedExpr, message: impl Into<String>, hint: Option<String>) -> Option<T> {
        let offset = self.offset(expr);
        self.faults.push(Fault { offset, message: message.into(), hint });
        None
    }

    /// Where an expression begins; an operator's own place if it has two sides.
    fn offset(&self, expr: &IdedExpr) -> usize {
        match &expr.expr {
            Expr::Select(select) => self.offset(&select.operand),
            Expr::Call(call) => match &call.target {
                Some(target) => self.offset(target),
                None => self.place(expr),
            },
            _ => self.place(expr),
        }
    }

    fn place(&self, expr: &IdedExpr) -> usize {
        self.places.offset_for(expr.id).map_or(0, |(start, _)| start as usize)
    }

    fn test(&mut self, expr: &IdedExpr) -> Option<Test> {
        match self.typed(expr)? {
            Typed::Test(test) => Some(test),
            other => {
                let kind = other.kind();
                self.fault(
                    expr,
                    format!("expected a condition, found {kind}"),
                    Some("compare it with something".into()),
                )
            }
        }
    }

    fn text(&mut self, expr: &IdedExpr) -> Option<Text> {
        match self.typed(expr)? {
            Typed::Text(text) => Some(text),
            other => {
                let kind = other.kind();
                self.fault(expr, format!("expected a string, found {kind}"), None)
            }
        }
    }

    fn list(&mut self, expr: &IdedExpr) -> Option<List> {
        match self.typed(expr)? {
            Typed::List(list) => Some(list),
            other => {
                let kind = other.kind();
                self.fault(expr, format!("expected a list of strings, found {kind}"), None)
            }
        }
    }

    fn typed(&mut self, expr: &IdedExpr) -> Option<Typed> {
        if self.depth >= CONDITION_DEPTH_MAX {
            return self.fault(expr, format!("nested deeper than {CONDITION_DEPTH_MAX} levels"), None);
        }
        self.depth += 1;
        let typed = self.typed_inner(expr);
        self.depth -= 1;
        typed
    }

    fn typed_inner(&mut self, expr: &IdedExpr) -> Option<Typed> {
        match &expr.expr {
            Expr::Literal(literal) => self.literal(expr, literal),
            Expr::Ident(_) | Expr::Select(_) => self.name(expr),
            Expr::List(list) => {
                let mut items = Vec::with_capacity(list.elements.len());
                for element in &list.elements {
                    items.push(self.text(element));
                }
                items.into_iter().collect::<Option<Vec<_>>>().map(|items| Typed::List(List::Const(items)))
            }
            Expr::Call(call) => match &call.target {
                Some(target) => self.method(expr, target, &call.func_name, &call.args),
                None => self.call(expr, &call.func_name, &call.args),
            },
            Expr::Map(_) | Expr::Struct(_) | Expr::Comprehension(_) | Expr::Unspecified => {
                self.fault(expr, "maps and messages have no use in a policy", None)
            }
        }
    }

    fn literal(&mut self, expr: &IdedExpr, literal: &LiteralValue) -> Option<Typed> {
        Some(match literal {
            LiteralValue::Boolean(value) => Typed::Test(Test::Const(*value.inner())),
            LiteralValue::Int(value) => Typed::Number(Number::Const(Amount::Int(*value.inner()))),
            LiteralValue::Double(value) => Typed::Number(Number::Const(Amount::Double(*value.inner()))),
            LiteralValue::String(value) => Typed::Text(Text::Const(value.inner().to_owned())),
            LiteralValue::UInt(_) | LiteralValue::Bytes(_) | LiteralValue::Null => {
                return self.fault(
                    expr,
                    "no fact has this type",
                    Some("numbers are written 5 or 0.5, text \"so\"".into()),
                );
            }
        })
    }

    fn name(&mut self, expr: &IdedExpr) -> Option<Typed> {
        let Some(name) = dotted(expr) else {
            return self.fault(expr, "only facts have parts", None);
        };
        if self.variable.as_deref() == Some(name.as_str()) {
            return Some(Typed::Text(Text::Variable));
        }
        let Some(fact) = find(&name) else {
            let group: Vec<&str> = FACTS
                .iter()
                .map(|fact| fact.name)
                .filter(|fact| fact.starts_with(&format!("{name}.")))
                .collect();
            let (message, hint) = if group.is_empty() {
                let hint = nearest(&name, FACTS.iter().map(|fact| fact.name));
                (format!("unknown fact `{name}`"), hint.map(|near| format!("did you mean `{near}`?")))
            } else {
                (format!("`{name}` is a group of facts"), Some(format!("one of {}", group.join(", "))))
            };
            return self.fault(expr, message, hint);
        };
        Some(match FACTS[fact].kind {
            FactKind::Bool => Typed::Test(Test::Fact(fact)),
            FactKind::Int | FactKind::Double { .. } => Typed::Number(Number::Fact(fact)),
            FactKind::Text { .. } => Typed::Text(Text::Fact(fact)),
            FactKind::List => Typed::List(List::Fact(fact)),
        })
    }

    fn call(&mut self, expr: &IdedExpr, function: &str, arguments: &[IdedExpr]) -> Option<Typed> {
        match (function, arguments) {
            (operators::LOGICAL_NOT, [inner]) => Some(Typed::Test(Test::Not(Box::new(self.test(inner)?)))),
            (operators::LOGICAL_AND | operators::LOGICAL_OR, [left, right]) => {
                // Both sides are read before either is given up, so both sides' mistakes are told.
                let (left, right) = (self.test(left), self.test(right));
                let (left, right) = (Box::new(left?), Box::new(right?));
                Some(Typed::Test(match function {
                    operators::LOGICAL_AND => Test::And(left, right),
                    _ => Test::Or(left, right),
                }))
            }
            (operators::NEGATE, [inner]) => match self.typed(inner)? {
                Typed::Number(Number::Const(Amount::Int(whole))) => {
                    Some(Typed::Number(Number::Const(Amount::Int(whole.saturating_neg()))))
                }
                Typed::Number(Number::Const(Amount::Double(number))) => {
                    Some(Typed::Number(Number::Const(Amount::Double(-number))))
                }
                Typed::Number(number) => Some(Typed::Number(Number::Negate(Box::new(number)))),
                other => {
                    let kind = other.kind();
                    self.fault(expr, format!("cannot negate {kind}"), Some("for conditions write `!`".into()))
                }
            },
            (operators::IN, [item, list]) => {
                let (item, list_read) = (self.text(item), self.list(list));
                let (item, list_read) = (item?, list_read?);
                if let (Text::Fact(fact), List::Const(words)) = (&item, &list_read) {
                    for word in words {
                        self.check_word(list, *fact, word)?;
                    }
                }
                Some(Typed::Test(Test::Listed(item, list_read)))
            }
            (operators::CONDITIONAL, [condition, then, otherwise]) => {
                self.conditional(expr, condition, then, otherwise)
            }
            ("size", [inner]) => self.size(inner),
            ("double", [inner]) => match self.typed(inner)? {
                Typed::Number(number) => Some(Typed::Number(Number::ToDouble(Box::new(number)))),
                other => {
                    let kind = other.kind();
                    self.fault(inner, format!("expected a number, found {kind}"), None)
                }
            },
            (operator, [left, right]) => {
                if let Some(relation) = relation(operator) {
                    return self.comparison(expr, relation, left, right);
                }
                if let Some(math) = math(operator) {
                    return self.arithmetic(expr, math, left, right);
                }
                self.unknown_function(expr, operator)
            }
            (other, _) => self.unknown_function(expr, other),
        }
    }

    fn unknown_function<T>(&mut self, expr: &IdedExpr, function: &str) -> Option<T> {
        let hint = nearest(function, FUNCTIONS.iter().copied())
            .map(|near| format!("did you mean `{near}`?"))
            .unwrap_or_else(|| {
                "functions: startsWith, endsWith, contains, exists, all, size, double, net.within".into()
            });
        self.fault(expr, format!("unknown function `{function}` or wrong number of arguments"), Some(hint))
    }

    fn method(
        &mut self,
        expr: &IdedExpr,
        target: &IdedExpr,
        function: &str,
        arguments: &[IdedExpr],
    ) -> Option<Typed> {
        let search = match function {
            "startsWith" => Some(Search::StartsWith),
            "endsWith" => Some(Search::EndsWith),
            "contains" => Some(Search::Contains),
            _ => None,
        };
        match (function, arguments) {
            ("within", networks) if dotted(target).as_deref() == Some("net") => self.within(expr, networks),
            ("exists" | "all", [variable, test]) => {
                let list = self.list(target)?;
                let Expr::Ident(name) = &variable.expr else {
                    return self.fault(variable, "expected a name for the element", None);
                };
                if self.variable.is_some() {
                    return self.fault(expr, "one exists or all inside another is not supported", None);
                }
                self.variable = Some(name.clone());
                let test = self.test(test);
                self.variable = None;
                Some(Typed::Test(Test::Quantified { every: function == "all", list, test: Box::new(test?) }))
            }
            ("size", []) => self.size(target),
            (_, [part]) if search.is_some() => {
                let (text, part) = (self.text(target), self.text(part));
                Some(Typed::Test(Test::Search(search?, text?, part?)))
            }
            _ => self.unknown_function(expr, function),
        }
    }

    fn within(&mut self, expr: &IdedExpr, arguments: &[IdedExpr]) -> Option<Typed> {
        let mut networks = Vec::with_capacity(arguments.len());
        for argument in arguments {
            let Expr::Literal(LiteralValue::String(text)) = &argument.expr else {
                return self.fault(argument, "expected a network written out, such as \"10.0.0.0/8\"", None);
            };
            match text.inner().parse::<Network>() {
                Ok(network) => networks.push(network),
                Err(problem) => {
                    return self.fault(
                        argument,
                        problem,
                        Some("write it as \"10.0.0.0/8\" or \"fd00::/8\"".into()),
                    );
                }
            }
        }
        if networks.is_empty() {
            return self.fault(expr, "net.within needs at least one network", None);
        }
        Some(Typed::Test(Test::Within(networks)))
    }

    fn size(&mut self, inner: &IdedExpr) -> Option<Typed> {
        match self.typed(inner)? {
            Typed::Text(text) => Some(Typed::Number(Number::Length(text))),
            Typed::List(list) => Some(Typed::Number(Number::Count(list))),
            other => {
                let kind = other.kind();
                self.fault(inner, format!("expected text or a list, found {kind}"), None)
            }
        }
    }

    fn conditional(
        &mut self,
        expr: &IdedExpr,
        condition: &IdedExpr,
        then: &IdedExpr,
        otherwise: &IdedExpr,
    ) -> Option<Typed> {
        let (condition, then, otherwise) = (self.test(condition), self.typed(then), self.typed(otherwise));
        match (condition?, then?, otherwise?) {
            (condition, Typed::Test(then), Typed::Test(otherwise)) => {
                Some(Typed::Test(Test::If(Box::new((condition, then, otherwise)))))
            }
            (condition, Typed::Number(then), Typed::Number(otherwise))
                if then.is_double() == otherwise.is_double() =>
            {
                Some(Typed::Number(Number::If(Box::new((condition, then, otherwise)))))
            }
            (_, then, otherwise) => {
                let (then, otherwise) = (then.kind(), otherwise.kind());
                self.fault(expr, format!("both branches need one type, found {then} and {otherwise}"), None)
            }
        }
    }

    fn comparison(
        &mut self,
        expr: &IdedExpr,
        relation: Relation,
        left_expr: &IdedExpr,
        right_expr: &IdedExpr,
    ) -> Option<Typed> {
        let (left, right) = (self.typed(left_expr), self.typed(right_expr));
        match (left?, right?) {
            (Typed::Number(left), Typed::Number(right)) => {
                Some(Typed::Test(Test::Numbers(relation, left, right)))
            }
            (Typed::Text(left), Typed::Text(right)) => {
                for (fact, word, place) in [(&left, &right, right_expr), (&right, &left, left_expr)] {
                    if let Text::Fact(fact) = fact {
                        self.check_word(place, *fact, word)?;
                    }
                }
                Some(Typed::Test(Test::Texts(relation, left, right)))
            }
            (Typed::Test(left), Typed::Test(right)) => {
                Some(Typed::Test(Test::Tests(relation, Box::new((left, right)))))
            }
            (left, right) => {
                let hint = match (&left, &right) {
                    (Typed::List(_), _) | (_, Typed::List(_)) => {
                        Some("for lists write `\"staff\" in user.groups`".into())
                    }
                    (Typed::Number(_), Typed::Text(_)) | (Typed::Text(_), Typed::Number(_)) => {
                        Some("numbers stand without quotes".into())
                    }
                    _ => None,
                };
                let (left, right) = (left.kind(), right.kind());
                self.fault(expr, format!("cannot compare {left} with {right}"), hint)
            }
        }
    }

    /// A fact with a closed list of words is compared with one of them or the mistake is told.
    fn check_word(&mut self, place: &IdedExpr, fact: usize, word: &Text) -> Option<()> {
        let (FactKind::Text { words }, Text::Const(word)) = (FACTS[fact].kind, word) else { return Some(()) };
        if words.is_empty() || words.contains(&word.as_str()) {
            return Some(());
        }
        let hint = match nearest(word, words.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("one of {}", words.join(", ")),
        };
        self.fault(place, format!("`{}` is never \"{word}\"", FACTS[fact].name), Some(hint))
    }

    fn arithmetic(
        &mut self,
        expr: &IdedExpr,
        math: Math,
        left: &IdedExpr,
        right: &IdedExpr,
    ) -> Option<Typed> {
        let (left, right) = (self.typed(left), self.typed(right));
        match (left?, right?) {
            (Typed::Number(left), Typed::Number(right)) if left.is_double() == right.is_double() => {
                if math == Math::Remainder && left.is_double() {
                    return self.fault(expr, "`%` takes whole numbers", None);
                }
                Some(Typed::Number(Number::Math(math, Box::new((left, right)))))
            }
            (Typed::Number(_), Typed::Number(_)) => self.fault(
                expr,
                "CEL does not mix int and double in arithmetic",
                Some("write 2.0 for 2, or double(…) around a whole number".into()),
            ),
            (left, right) => {
                let (left, right) = (left.kind(), right.kind());
                self.fault(expr, format!("cannot calculate with {left} and {right}"), None)
            }
        }
    }
}

impl Typed {
    fn kind(&self) -> &'static str {
        match self {
            Typed::Test(_) => "a bool",
            Typed::Number(number) if number.is_double() => "a double",
            Typed::Number(_) => "an int",
            Typed::Text(_) => "a string",
            Typed::List(_) => "a list",
        }
    }
}

fn relation(operator: &str) -> Option<Relation> {
    Some(match operator {
        operators::EQUALS => Relation::Equal,
        operators::NOT_EQUALS => Relation::Unequal,
        operators::LESS => Relation::Less,
        operators::LESS_EQUALS => Relation::LessOrEqual,
        operators::GREATER => Relation::Greater,
        operators::GREATER_EQUALS => Relation::GreaterOrEqual,
        _ => return None,
    })
}

fn math(operator: &str) -> Option<Math> {
    Some(match operator {
        operators::ADD => Math::Add,
        operators::SUBSTRACT => Math::Subtract,
        operators::MULTIPLY => Math::Multiply,
        operators::DIVIDE => Math::Divide,
        operators::MODULO => Math::Remainder,
        _ => return None,
    })
}

/// The dotted name an expression spells, if it spells one.
fn dotted(expr: &IdedExpr) -> Option<String> {
    match &expr.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => {
            Some(format!("{}.{}", dotted(&select.operand)?, select.field))
        }
        _ => None,
    }
}

/// How deep a recursive parser would go at most: open brackets, plus the operators and dots between
/// two places where a chain starts anew. Text in quotes does not count.
fn nesting(source: &str) -> usize {
    let (mut depth, mut chain, mut deepest) = (0_usize, 0, 0);
    let mut quote = None;
    let mut escaped = false;
    for character in source.chars() {
        if let Some(open) = quote {
            if character == open && !escaped {
                quote = None;
            }
            escaped = character == '\\' && !escaped;
            continue;
        }
        match character {
            '"' | '\'' => quote = Some(character),
            '(' | '[' | '{' | '?' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '&' | '|' | ',' => chain = 0,
            '!' | '-' | '+' | '*' | '/' | '%' | '.' | '<' | '>' | '=' => chain += 1,
            _ => {}
        }
        deepest = deepest.max(depth + chain);
    }
    deepest
}

fn offset_of(source: &str, (line, column): (isize, isize)) -> usize {
    let line = usize::try_from(line).unwrap_or(1).max(1);
    let before: usize = source.split_inclusive('\n').take(line - 1).map(str::len).sum();
    (before + usize::try_from(column).unwrap_or(1).saturating_sub(1)).min(source.len())
}

// ---- what can be seen without running ----

impl Test {
    fn conjuncts(&self) -> Vec<&Test> {
        match self {
            Test::And(left, right) => {
                let mut parts = left.conjuncts();
                parts.extend(right.conjuncts());
                parts
            }
            other => vec![other],
        }
    }

    fn always(&self) -> bool {
        match self {
            Test::Const(value) => *value,
            Test::And(left, right) => left.always() && right.always(),
            Test::Or(left, right) => left.always() || right.always(),
            Test::Not(inner) => inner.never().is_some(),
            Test::Numbers(..) => self.negated().is_some_and(|negated| negated.never().is_some()),
            _ => false,
        }
    }

    fn negated(&self) -> Option<Test> {
        let Test::Numbers(relation, left, right) = self else { return None };
        let relation = match relation {
            Relation::Less => Relation::GreaterOrEqual,
            Relation::LessOrEqual => Relation::Greater,
            Relation::Greater => Relation::LessOrEqual,
            Relation::GreaterOrEqual => Relation::Less,
            Relation::Equal | Relation::Unequal => return None,
        };
        Some(Test::Numbers(relation, left.clone(), right.clone()))
    }

    fn never(&self) -> Option<String> {
        match self {
            Test::Const(false) => Some("it is false".into()),
            Test::Or(left, right) => left.never().and(right.never()),
            Test::Not(inner) => inner.always().then(|| "it denies what always holds".into()),
            _ => {
                let parts = self.conjuncts();
                if parts.len() > 1
                    && let Some(reason) = parts.iter().find_map(|part| part.never())
                {
                    return Some(reason);
                }
                contradiction(&parts)
            }
        }
    }

    fn words<'t>(&'t self, fact: usize, words: &mut Vec<&'t str>) {
        match self {
            Test::Not(inner) => inner.words(fact, words),
            Test::Quantified { test, .. } => test.words(fact, words),
            Test::And(left, right) | Test::Or(left, right) => {
                left.words(fact, words);
                right.words(fact, words);
            }
            Test::Tests(_, sides) => {
                sides.0.words(fact, words);
                sides.1.words(fact, words);
            }
            Test::If(parts) => {
                parts.0.words(fact, words);
                parts.1.words(fact, words);
                parts.2.words(fact, words);
            }
            Test::Texts(_, Text::Fact(named), Text::Const(word))
            | Test::Texts(_, Text::Const(word), Text::Fact(named))
                if *named == fact =>
            {
                words.push(word);
            }
            Test::Listed(Text::Fact(named), List::Const(items)) if *named == fact => {
                words.extend(items.iter().filter_map(|item| match item {
                    Text::Const(word) => Some(word.as_str()),
                    _ => None,
                }));
            }
            _ => {}
        }
    }

    fn names(&self, names: &mut BTreeSet<usize>) {
        match self {
            Test::Const(_) => {}
            Test::Fact(fact) => {
                names.insert(*fact);
            }
            Test::Not(inner) => inner.names(names),
            Test::And(left, right) | Test::Or(left, right) => {
                left.names(names);
                right.names(names);
            }
            Test::Tests(_, sides) => {
                sides.0.names(names);
                sides.1.names(names);
            }
            Test::If(parts) => {
                parts.0.names(names);
                parts.1.names(names);
                parts.2.names(names);
            }
            Test::Numbers(_, left, right) => {
                left.names(names);
                right.names(names);
            }
            Test::Texts(_, left, right) | Test::Search(_, left, right) => {
                left.names(names);
                right.names(names);
            }
            Test::Listed(text, list) => {
                text.names(names);
                list.names(names);
            }
            Test::Within(_) => {
                names.extend(find("net.ip"));
            }
            Test::Quantified { list, test, .. } => {
                list.names(names);
                test.names(names);
            }
        }
    }
}

impl Number {
    fn names(&self, names: &mut BTreeSet<usize>) {
        match self {
            Number::Const(_) => {}
            Number::Fact(fact) => {
                names.insert(*fact);
            }
            Number::Negate(inner) | Number::ToDouble(inner) => inner.names(names),
            Number::Math(_, sides) => {
                sides.0.names(names);
                sides.1.names(names);
            }
            Number::Length(text) => text.names(names),
            Number::Count(list) => list.names(names),
            Number::If(parts) => {
                parts.0.names(names);
                parts.1.names(names);
                parts.2.names(names);
            }
        }
    }
}

impl Text {
    fn names(&self, names: &mut BTreeSet<usize>) {
        if let Text::Fact(fact) = self {
            names.insert(*fact);
        }
    }
}

impl List {
    fn names(&self, names: &mut BTreeSet<usize>) {
        match self {
            List::Fact(fact) => {
                names.insert(*fact);
            }
            List::Const(items) => items.iter().for_each(|item| item.names(names)),
        }
    }
}

/// What a conjunction leaves possible for one numeric fact.
struct Bounds {
    least: f64,
    least_open: bool,
    most: f64,
    most_open: bool,
}

impl Bounds {
    fn narrow(&mut self, relation: Relation, value: f64) {
        let (lower, upper, open) = match relation {
            Relation::Greater => (Some(value), None, true),
            Relation::GreaterOrEqual => (Some(value), None, false),
            Relation::Less => (None, Some(value), true),
            Relation::LessOrEqual => (None, Some(value), false),
            Relation::Equal => (Some(value), Some(value), false),
            Relation::Unequal => (None, None, false),
        };
        if let Some(lower) = lower
            && (lower > self.least || (lower == self.least && open))
        {
            (self.least, self.least_open) = (lower, open);
        }
        if let Some(upper) = upper
            && (upper < self.most || (upper == self.most && open))
        {
            (self.most, self.most_open) = (upper, open);
        }
    }

    fn is_empty(&self) -> bool {
        self.least > self.most || (self.least == self.most && (self.least_open || self.most_open))
    }
}

/// Why these parts cannot hold together, if that can be seen fact by fact.
fn contradiction(parts: &[&Test]) -> Option<String> {
    let mut numbers: BTreeMap<usize, Bounds> = BTreeMap::new();
    let mut words: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    let mut booleans: BTreeMap<usize, bool> = BTreeMap::new();
    for part in parts {
        let (fact, possible) = match part {
            Test::Numbers(relation, Number::Const(left), Number::Const(right)) => {
                if !relation.of(left.compared(*right)) {
                    return Some("it compares two numbers that never change".into());
                }
                continue;
            }
            Test::Numbers(relation, Number::Fact(fact), Number::Const(amount)) => {
                bounds_of(&mut numbers, *fact).narrow(*relation, amount.double());
                (*fact, !bounds_of(&mut numbers, *fact).is_empty())
            }
            Test::Numbers(relation, Number::Const(amount), Number::Fact(fact)) => {
                bounds_of(&mut numbers, *fact).narrow(relation.flipped(), amount.double());
                (*fact, !bounds_of(&mut numbers, *fact).is_empty())
            }
            Test::Fact(fact) => (*fact, *booleans.entry(*fact).or_insert(true)),
            Test::Not(inner) => match **inner {
                Test::Fact(fact) => (fact, !*booleans.entry(fact).or_insert(false)),
                _ => continue,
            },
            Test::Texts(Relation::Equal, Text::Fact(fact), Text::Const(word))
            | Test::Texts(Relation::Equal, Text::Const(word), Text::Fact(fact)) => {
                let left = words.entry(*fact).or_insert_with(|| BTreeSet::from([word.as_str()]));
                left.retain(|other| other == word);
                (*fact, !left.is_empty())
            }
            Test::Listed(Text::Fact(fact), List::Const(items)) => {
                let listed: BTreeSet<&str> = items
                    .iter()
                    .filter_map(|item| if let Text::Const(word) = item { Some(word.as_str()) } else { None })
                    .collect();
                if listed.len() < items.len() {
                    continue;
                }
                let left = words.entry(*fact).or_insert_with(|| listed.clone());
                left.retain(|other| listed.contains(other));
                (*fact, !left.is_empty())
            }
            _ => continue,
        };
        if !possible {
            let name = FACTS[fact].name;
            return Some(match FACTS[fact].kind {
                FactKind::Double { least, most } if most.is_finite() => {
                    format!("no value of `{name}` ({least} to {most}) fits")
                }
                _ => format!("no value of `{name}` fits"),
            });
        }
    }
    None
}

fn bounds_of(numbers: &mut BTreeMap<usize, Bounds>, fact: usize) -> &mut Bounds {
    numbers.entry(fact).or_insert_with(|| {
        let (least, most) = match FACTS[fact].kind {
            FactKind::Double { least, most } => (least, most),
            _ => (0.0, f64::INFINITY),
        };
        Bounds { least, least_open: false, most, most_open: false }
    })
}

// ---- networks ----

/// An address block such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// An IPv4 address written in IPv6 (`::ffff:10.0.0.1`) is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = u32::from(network) ^ u32::from(address);
                differing.checked_shr(32 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = u128::from(network) ^ u128::from(address);
                differing.checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| format!("`{text}` is no network"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= longest),
            None => Some(longest),
        }
        .ok_or_else(|| format!("`{text}` has no prefix length from 0 to {longest}"))?;
        let network = Network { address, prefix };
        // `10.1.2.3/8` is a slip more often than not: say so instead of guessing.
        let stray = match address {
            IpAddr::V4(v4) => u32::from(v4).checked_shl(u32::from(prefix)).unwrap_or(0) != 0,
            IpAddr::V6(v6) => u128::from(v6).checked_shl(u32::from(prefix)).unwrap_or(0) != 0,
        };
        if stray {
            return Err(format!("`{text}` has address bits after its /{prefix}"));
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests;
