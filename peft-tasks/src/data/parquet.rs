//! Rows of Parquet files, the format in which the Hub keeps data sets.

use std::path::Path;

use peft_core::{PeftError, Result};

use crate::data::row::Row;

/// More than fit into memory, whatever they hold.
#[cfg(feature = "parquet")]
const MOST_CELLS: u64 = 1 << 30;

/// The rows of a file.
///
/// # Errors
/// If it is damaged, is compressed in a way that this build does not know, or has more than is read into memory.
#[cfg(feature = "parquet")]
pub(crate) fn rows(path: &Path, most: u64) -> Result<Vec<Row>> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use serde_json::Value;

    use crate::data::guard::guarded;

    let bad = |reason: String| PeftError::bad_file(path, reason);
    let file = std::fs::File::open(path).map_err(PeftError::io("read", path))?;
    // The library counts on what a file says of itself, and panics where that is wrong.
    let read = || -> std::result::Result<Vec<Row>, String> {
        let reader = SerializedFileReader::new(file).map_err(|error| error.to_string())?;
        let about = reader.metadata();
        let bytes: i64 = about.row_groups().iter().map(|it| it.total_byte_size()).sum();
        // A row that repeats takes no room in the file.
        let columns = about.file_metadata().schema_descr().num_columns().max(1) as i64;
        let cells = about.file_metadata().num_rows().saturating_mul(columns);
        let is_too_large = |it: i64, most: u64| u64::try_from(it).map_or(true, |it| it > most);
        if is_too_large(bytes, most) || is_too_large(cells, MOST_CELLS) {
            return Err(format!("it has more than {} GiB, which is the most that is read; split it", most >> 30));
        }
        let rows = reader.get_row_iter(None).map_err(|error| error.to_string())?;
        let row = |(index, row): (usize, parquet::errors::Result<parquet::record::Row>)| match row
            .map_err(|error| error.to_string())?
            .to_json_value()
        {
            Value::Object(fields) => Ok(Row { line: index + 1, fields, file: 0 }),
            _ => Err(format!("row {} is no object", index + 1)),
        };
        rows.enumerate().map(row).collect()
    };
    let explained = |reason: String| match reason.rsplit_once("Disabled feature at compile time: ") {
        Some((_, packed)) => bad(format!("it is packed with {packed}, and only snappy is read: write it with snappy")),
        None => bad(reason),
    };
    guarded(read).ok_or_else(|| bad("it is damaged".to_owned()))?.map_err(explained)
}

/// The rows of a file, in a build that reads none.
#[cfg(not(feature = "parquet"))]
pub(crate) fn rows(path: &Path, _: u64) -> Result<Vec<Row>> {
    let reason = "this build does not read Parquet: build it with the feature `parquet`, or write JSON lines in Python, \
                  `Dataset.from_parquet(…).to_json(…)`";
    Err(PeftError::bad_file(path, reason))
}

#[cfg(all(test, feature = "parquet"))]
mod tests {
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::rows;
    use crate::data::reading::MAX_BYTES;

    /// A column of texts, one of numbers, and one of lists of words: `[]` and `["a", "b"]`.
    fn written() -> Vec<u8> {
        let schema = "message rows { REQUIRED BYTE_ARRAY text (UTF8); OPTIONAL INT64 label; \
                      REQUIRED GROUP tokens (LIST) { REPEATED GROUP list { REQUIRED BYTE_ARRAY element (UTF8); } } }";
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut bytes = Vec::new();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let texts = ["naïve", "two"].map(ByteArray::from);
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[7], Some(&[1, 0]), None).unwrap();
        column.close().unwrap();
        let words = ["a", "b"].map(ByteArray::from);
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&words, Some(&[0, 1, 1]), Some(&[0, 0, 1])).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        bytes
    }

    #[test]
    fn columns_are_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.parquet");
        std::fs::write(&path, written()).unwrap();
        let rows = rows(&path, MAX_BYTES).unwrap();
        let fields: Vec<String> = rows.iter().map(|it| serde_json::to_string(&it.fields).unwrap()).collect();
        assert_eq!(fields[0], r#"{"text":"naïve","label":7,"tokens":[]}"#);
        assert_eq!(fields[1], r#"{"text":"two","label":null,"tokens":["a","b"]}"#);
    }

    /// Every byte of the file in turn is another: an error or other rows, and no panic.
    #[test]
    fn a_damaged_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.parquet");
        let whole = written();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            std::fs::write(&path, &damaged).unwrap();
            let _ = rows(&path, MAX_BYTES);
        }
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(rows(&path, MAX_BYTES).unwrap_err().to_string().contains("rows.parquet"));
    }
}
