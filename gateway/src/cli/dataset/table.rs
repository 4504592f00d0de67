//! Evidence windows as a table: comma-separated values, or Parquet.
//!
//! Must not know: where recordings come from, where the table goes.

use super::quoted;
use anyhow::Context;
use gaitway_models::dataset::{self, Recording};
use gaitway_models::features::{FEATURES, Row};
use parquet::basic::{LogicalType, Repetition, Type as PhysicalType};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int32Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;
use std::fmt::Write;
use std::sync::Arc;

const TEXTS: [&str; 5] = ["session", "source", "user", "label", "bot_family"];
const NUMBERS: [&str; 2] = ["window", "span_s"];

/// One window of a recording.
pub(super) struct FeatureRow<'r> {
    texts: [&'r str; TEXTS.len()],
    /// Its number within the recording, and its length in seconds.
    numbers: [i32; NUMBERS.len()],
    features: Row,
}

pub(super) fn feature_rows(recording: &Recording) -> Vec<FeatureRow<'_>> {
    let mut rows = Vec::new();
    for (number, window) in dataset::windows(&recording.events).into_iter().enumerate() {
        for (span, row) in [(10, Some(window.short)), (30, window.long)] {
            let Some(row) = row else { continue };
            let (user, family) = (&recording.user, recording.family.as_deref().unwrap_or_default());
            let texts = [&recording.session, &recording.source, user, recording.label.name(), family];
            rows.push(FeatureRow { texts, numbers: [number as i32, span], features: row.features });
        }
    }
    rows
}

/// What is missing is an empty field.
pub(super) fn csv(rows: &[FeatureRow<'_>]) -> String {
    let names = FEATURES.iter().map(|feature| feature.name);
    let mut table = TEXTS.into_iter().chain(NUMBERS).chain(names).collect::<Vec<_>>().join(",");
    table.push('\n');
    for row in rows {
        table += &row.texts.map(quoted).join(",");
        let _ = row.numbers.iter().try_for_each(|number| write!(table, ",{number}"));
        for value in row.features {
            let _ = if value.is_nan() { write!(table, ",") } else { write!(table, ",{value}") };
        }
        table.push('\n');
    }
    table
}

/// What is missing is null.
pub(super) fn parquet(rows: &[FeatureRow<'_>]) -> anyhow::Result<Vec<u8>> {
    let column = |name: &str, kind, repetition, logical| {
        let column = Type::primitive_type_builder(name, kind).with_repetition(repetition);
        anyhow::Ok(Arc::new(column.with_logical_type(logical).build()?))
    };
    let mut columns = Vec::new();
    for name in TEXTS {
        columns.push(column(
            name,
            PhysicalType::BYTE_ARRAY,
            Repetition::REQUIRED,
            Some(LogicalType::String),
        )?);
    }
    for name in NUMBERS {
        columns.push(column(name, PhysicalType::INT32, Repetition::REQUIRED, None)?);
    }
    for feature in FEATURES {
        columns.push(column(feature.name, PhysicalType::FLOAT, Repetition::OPTIONAL, None)?);
    }
    let schema = Arc::new(Type::group_type_builder("windows").with_fields(columns).build()?);
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties)?;
    for rows in rows.chunks(ROW_GROUP_ROWS) {
        let mut group = writer.next_row_group()?;
        write_group(&mut group, rows)?;
        group.close()?;
    }
    Ok(writer.into_inner()?)
}

fn write_group(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    rows: &[FeatureRow<'_>],
) -> anyhow::Result<()> {
    let missing = "the table has fewer columns than its schema";
    for i in 0..TEXTS.len() {
        let values: Vec<ByteArray> = rows.iter().map(|row| row.texts[i].into()).collect();
        let mut column = group.next_column()?.context(missing)?;
        column.typed::<ByteArrayType>().write_batch(&values, None, None)?;
        column.close()?;
    }
    for i in 0..NUMBERS.len() {
        let values: Vec<i32> = rows.iter().map(|row| row.numbers[i]).collect();
        let mut column = group.next_column()?.context(missing)?;
        column.typed::<Int32Type>().write_batch(&values, None, None)?;
        column.close()?;
    }
    for i in 0..FEATURES.len() {
        let is_there: Vec<i16> = rows.iter().map(|row| i16::from(!row.features[i].is_nan())).collect();
        let values: Vec<f32> =
            rows.iter().map(|row| row.features[i]).filter(|value| !value.is_nan()).collect();
        let mut column = group.next_column()?.context(missing)?;
        column.typed::<FloatType>().write_batch(&values, Some(&is_there), None)?;
        column.close()?;
    }
    Ok(())
}

/// Rows of one row group: some ten megabytes.
const ROW_GROUP_ROWS: usize = 32_768;
