//! One definition of every setting: the struct field and its comment. From it come the checks with
//! line and column, the `GAITWAY_…` variables, the sample file and the reference page.
//!
//! Must not know: any particular setting.

use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a value of a setting looks like.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Flag,
    Whole {
        max: u64,
    },
    Number,
    Text {
        expects: &'static str,
        valid: fn(&str) -> bool,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    List(&'static Kind),
    /// May be absent.
    Optional(&'static Kind),
    Section {
        fields: &'static [Field],
        /// The section as it is when nobody says anything.
        default: DefaultOf,
    },
}

/// Makes a section's default.
pub type DefaultOf = fn() -> serde_json::Value;

/// One row of the table: a setting or a section of settings.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    /// The lines of its comment.
    pub doc: &'static [&'static str],
    pub kind: Kind,
}

pub trait Setting {
    const KIND: Kind;
}

/// Declares a section: the struct as written, and its rows in the table. Every field needs a comment;
/// an optional one ends with ``Example: `value` `` for the sample file.
macro_rules! settings {
    ($(#[$meta:meta])* pub struct $name:ident {
        $( $(#[doc = $doc:literal])+ $(#[serde($($serde:tt)*)])* pub $field:ident: $type:ty, )*
    }) => {
        $(#[$meta])*
        pub struct $name {
            $( $(#[doc = $doc])+ $(#[serde($($serde)*)])* pub $field: $type, )*
        }

        impl $crate::config::settings::Setting for $name {
            const KIND: $crate::config::settings::Kind = $crate::config::settings::Kind::Section {
                fields: &[ $( $crate::config::settings::Field {
                    name: stringify!($field),
                    doc: &[$($doc),+],
                    kind: <$type as $crate::config::settings::Setting>::KIND,
                } ),* ],
                default: || serde_json::to_value(<$name>::default()).unwrap_or_default(),
            };
        }
    };
}

/// Declares the words of an enum setting, as serde spells them.
macro_rules! choices {
    ($name:ident: $($word:literal),+) => {
        impl $crate::config::settings::Setting for $name {
            const KIND: $crate::config::settings::Kind =
                $crate::config::settings::Kind::Choice(&[$($word),+]);
        }
    };
}

macro_rules! kinds {
    ($($type:ty => $kind:expr;)+) => { $( impl Setting for $type { const KIND: Kind = $kind; } )+ };
}

kinds! {
    bool => Kind::Flag;
    u8 => Kind::Whole { max: u8::MAX as u64 };
    u16 => Kind::Whole { max: u16::MAX as u64 };
    u32 => Kind::Whole { max: u32::MAX as u64 };
    u64 => Kind::Whole { max: u64::MAX };
    usize => Kind::Whole { max: usize::MAX as u64 };
    f32 => Kind::Number;
    f64 => Kind::Number;
    String => Kind::Text { expects: "text", valid: |_| true };
    PathBuf => Kind::Text { expects: "a path", valid: |text| !text.is_empty() };
    SocketAddr => Kind::Text {
        expects: "an address and port such as 127.0.0.1:8000 or [::1]:8000",
        valid: |text| text.parse::<SocketAddr>().is_ok(),
    };
    IpNet => Kind::Text {
        expects: "a network such as 10.0.0.0/8 or 192.0.2.7/32",
        valid: |text| text.parse::<IpNet>().is_ok(),
    };
}

impl<T: Setting> Setting for Option<T> {
    const KIND: Kind = Kind::Optional(&T::KIND);
}

impl<T: Setting> Setting for Vec<T> {
    const KIND: Kind = Kind::List(&T::KIND);
}

impl Kind {
    /// The fields, if this is a section, optional or not.
    pub fn section(&self) -> Option<(&'static [Field], DefaultOf)> {
        match *self {
            Kind::Section { fields, default } => Some((fields, default)),
            Kind::Optional(inner) => inner.section(),
            _ => None,
        }
    }

    /// The fields of each entry, if this is a list of sections.
    pub fn entries(&self) -> Option<(&'static [Field], DefaultOf)> {
        match *self {
            Kind::List(entry) => entry.section(),
            _ => None,
        }
    }

    pub fn is_optional(&self) -> bool {
        matches!(self, Kind::Optional(_))
    }

    /// What a value must look like, to complete "expected …".
    pub fn expects(&self) -> String {
        match self {
            Kind::Flag => "true or false".into(),
            Kind::Whole { max } if *max == u64::MAX => "a whole number".into(),
            Kind::Whole { max } => format!("a whole number up to {max}"),
            Kind::Number => "a number".into(),
            Kind::Text { expects, .. } => (*expects).into(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::List(inner) => format!("a list, each entry {}", inner.expects()),
            Kind::Optional(inner) => inner.expects(),
            Kind::Section { .. } => "a section with settings of its own".into(),
        }
    }

    /// Reads one scalar; `None` if it is not of this kind. `quoted`: written in quotation marks,
    /// so text and nothing else.
    pub fn scalar(&self, text: &str, quoted: bool) -> Option<serde_json::Value> {
        match self {
            Kind::Flag if quoted => None,
            Kind::Flag => text.parse::<bool>().ok().map(Into::into),
            Kind::Whole { .. } | Kind::Number if quoted => None,
            Kind::Whole { max } => text.parse::<u64>().ok().filter(|number| number <= max).map(Into::into),
            Kind::Number => text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Into::into),
            Kind::Text { valid, .. } => valid(text).then(|| text.into()),
            Kind::Choice(words) => words.contains(&text).then(|| text.into()),
            Kind::Optional(inner) => inner.scalar(text, quoted),
            Kind::List(_) | Kind::Section { .. } => None,
        }
    }
}

impl Field {
    /// The comment as one paragraph, without the example.
    pub fn text(&self) -> String {
        let whole = self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        whole.split("Example: `").next().unwrap_or_default().trim().to_owned()
    }

    /// The example value of the comment, as YAML.
    pub fn example(&self) -> Option<String> {
        let whole = self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        let (_, rest) = whole.split_once("Example: `")?;
        rest.split_once('`').map(|(value, _)| value.to_owned())
    }

    /// Whether 0 is a value one may want: only if the comment says what it means.
    pub fn zero_means_something(&self) -> bool {
        self.text().split(|c: char| !c.is_alphanumeric()).any(|word| word == "0")
    }
}

/// Calls `visit(path, field)` for every setting and section, parents first, in file order.
pub fn walk(fields: &'static [Field], visit: &mut impl FnMut(&str, &'static Field)) {
    fn descend(prefix: &str, fields: &'static [Field], visit: &mut impl FnMut(&str, &'static Field)) {
        for field in fields {
            let path =
                if prefix.is_empty() { field.name.to_owned() } else { format!("{prefix}.{}", field.name) };
            visit(&path, field);
            if let Some((inner, _)) = field.kind.section() {
                descend(&path, inner, visit);
            }
        }
    }
    descend("", fields, visit);
}

/// `GAITWAY_` and the path in capitals.
pub fn variable_name(path: &str) -> String {
    format!("GAITWAY_{}", path.replace('.', "_").to_uppercase())
}
