//! Which pictures a data set has: a folder for each class, or a table with paths.

use std::fs;
use std::path::{Path, PathBuf};

use peft_core::{PeftError, Result};
use serde_json::{Map, Value};

use crate::data::columns::Columns;
use crate::data::dataset::{Dataset, Row, TextRows};
use crate::data::reading;

/// Endings of pictures that are read.
const ENDINGS: [&str; 9] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "jpe"];
/// Tables in a folder of pictures, as `imagefolder` of `datasets` names them.
const METADATA: [&str; 3] = ["metadata.csv", "metadata.jsonl", "metadata.parquet"];
/// Names of folders of pictures and of masks beside each other.
const IMAGE_FOLDERS: [&str; 3] = ["images", "image", "imgs"];
const MASK_FOLDERS: [&str; 6] = ["masks", "mask", "annotations", "annotation", "labels", "segmentation"];
/// Names of columns.
const IMAGE: [&str; 7] = ["image", "file_name", "image_path", "filename", "file", "path", "img"];
const MASK: [&str; 6] = ["mask", "annotation", "segmentation", "segmentation_map", "labels", "label"];
const TEXT: [&str; 4] = ["text", "caption", "answer", "completion"];
const PROMPT: [&str; 2] = ["prompt", "question"];
const LABEL: [&str; 4] = ["label", "labels", "class", "category"];

/// The parts of a row, as columns are given for them: `--column image=photo`.
const IMAGE_PART: &str = "image";
const MASK_PART: &str = "mask";
const TEXT_PART: &str = "text";
const PROMPT_PART: &str = "prompt";

/// The rows of a data set of pictures.
#[derive(Debug, Clone)]
pub struct ImageRows {
    /// The rows. Of a folder with a subfolder for each class these are made up: `image` and `label`.
    pub data: Dataset,
    columns: Columns,
    /// What paths are relative to, for each file of the data.
    folders: Vec<PathBuf>,
}

impl ImageRows {
    /// Reads what is there: a table (JSONL, JSON, CSV, TSV or Parquet) with paths of pictures, relative to its folder; a
    /// folder with such a table, `metadata.csv` or `metadata.jsonl`; a folder with a subfolder of pictures for each
    /// class; or one with `images` and `masks` (`annotations`, `labels`), where files of one name belong together.
    ///
    /// # Errors
    /// If there is no picture, or nothing of that kind.
    pub fn read(name: impl AsRef<Path>, columns: &Columns) -> Result<Self> {
        let name = name.as_ref();
        if !name.is_dir() {
            return Self::of_table(name, columns);
        }
        if let Some(table) = METADATA.iter().map(|it| name.join(it)).find(|it| it.is_file()) {
            return Self::of_table(&table, columns);
        }
        let inside = folders(name)?;
        let called = |names: &[&str]| {
            names.iter().find_map(|wanted| inside.iter().find(|it| last(it).eq_ignore_ascii_case(wanted)))
        };
        let rows = match (called(&IMAGE_FOLDERS), called(&MASK_FOLDERS)) {
            (Some(images), Some(masks)) => with_masks(images, masks)?,
            _ => by_class(name, &inside)?,
        };
        if rows.is_empty() {
            let reason = format!(
                "it holds neither a folder of pictures (.{}) for each class, nor `images` beside `masks`, nor \
                 `metadata.csv` or `metadata.jsonl` with the paths of pictures",
                ENDINGS.join(", .")
            );
            return Err(PeftError::bad_file(name, reason));
        }
        let rows = rows.into_iter().enumerate().map(|(at, fields)| Row { line: at + 1, fields, file: 0 }).collect();
        let data = Dataset { files: vec![name.to_path_buf()], rows };
        Ok(Self { data, columns: columns.clone(), folders: vec![PathBuf::new()] })
    }

    fn of_table(name: &Path, columns: &Columns) -> Result<Self> {
        let data = Dataset::read(name, TextRows::Lines)?;
        let folder = |file: &PathBuf| file.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        let folders = data.files.iter().map(folder).collect();
        Ok(Self { data, columns: columns.clone(), folders })
    }

    fn column(&self, part: &str, usual: &[&str]) -> Result<String> {
        self.columns.of_part_called(part, usual, &self.data)
    }

    /// The column of labels.
    ///
    /// # Errors
    /// If there is none.
    pub fn label_column(&self) -> Result<String> {
        match &self.columns.label {
            Some(column) => Ok(column.clone()),
            None => self.column("label", &LABEL),
        }
    }

    /// The pictures, one for each row.
    ///
    /// # Errors
    /// If there is no such column, or a row names none that is there.
    pub fn images(&self) -> Result<Vec<PathBuf>> {
        let column = self.column(IMAGE_PART, &IMAGE)?;
        self.data.rows.iter().map(|row| self.path(row, &column)).collect()
    }

    /// The masks, one for each row.
    ///
    /// # Errors
    /// As for the pictures.
    pub fn masks(&self) -> Result<Vec<PathBuf>> {
        let column = match &self.columns.label {
            Some(column) => column.clone(),
            None => self.column(MASK_PART, &MASK)?,
        };
        self.data.rows.iter().map(|row| self.path(row, &column)).collect()
    }

    /// The texts, one for each row.
    ///
    /// # Errors
    /// If there is no such column, or a row has no text.
    pub fn texts(&self) -> Result<Vec<String>> {
        let column = match self.columns.completion.as_ref().or(self.columns.text.as_ref()) {
            Some(column) => column.clone(),
            None => self.column(TEXT_PART, &TEXT)?,
        };
        self.data.rows.iter().map(|row| self.data.text(row, &column)).collect()
    }

    /// What is asked about each picture; empty texts where there is no column of questions.
    ///
    /// # Errors
    /// If a row lacks what others have.
    pub fn prompts(&self) -> Result<Vec<String>> {
        let usual = self.columns.prompt.clone().or_else(|| self.column(PROMPT_PART, &PROMPT).ok());
        let text = |row| usual.as_ref().map_or(Ok(String::new()), |column| self.data.text(row, column));
        self.data.rows.iter().map(text).collect()
    }

    fn path(&self, row: &Row, column: &str) -> Result<PathBuf> {
        let value = self.data.value(row, column)?;
        // As `datasets` writes pictures of its own rows.
        let named = value.as_str().or_else(|| value.get("path").and_then(Value::as_str)).unwrap_or_default();
        if named.is_empty() {
            return Err(self.data.bad_row(row, format!("column `{column}` names no picture")));
        }
        if named.starts_with("http://") || named.starts_with("https://") {
            let reason = format!("column `{column}` is an address, {named}: download the pictures first");
            return Err(self.data.bad_row(row, reason));
        }
        let path = self.folders.get(row.file).map_or_else(PathBuf::new, Clone::clone).join(named);
        match path.is_file() {
            true => Ok(path),
            false => Err(self.data.bad_row(row, format!("there is no picture {}", path.display()))),
        }
    }

    /// All files that the data is made of: tables, pictures, masks.
    ///
    /// # Errors
    /// As for the pictures.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let tables = self.data.files.iter().filter(|it| it.is_file()).cloned();
        let masks = if self.column(MASK_PART, &MASK).is_ok() { self.masks().unwrap_or_default() } else { Vec::new() };
        Ok(tables.chain(self.images()?).chain(masks).collect())
    }
}

fn row(fields: [(&str, String); 2]) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

/// The pictures below each subfolder, whose name is their class.
fn by_class(name: &Path, inside: &[PathBuf]) -> Result<Vec<Map<String, Value>>> {
    let mut rows = Vec::new();
    for folder in inside {
        let mut pictures = Vec::new();
        below(folder, &mut pictures)?;
        if pictures.is_empty() {
            tracing::warn!("{} holds no picture: it is no class", folder.display());
        }
        rows.extend(
            pictures.iter().map(|it| row([(IMAGE_PART, it.display().to_string()), ("label", last(folder).to_owned())])),
        );
    }
    let loose = files(name)?.into_iter().filter(|it| is_picture(it)).count();
    if loose > 0 && !rows.is_empty() {
        tracing::warn!("{loose} pictures of {} are in no folder of a class: they are not read", name.display());
    }
    Ok(rows)
}

/// Pictures and masks whose names are the same but for the ending.
fn with_masks(images: &Path, masks: &Path) -> Result<Vec<Map<String, Value>>> {
    let stem = |path: &Path| path.file_stem().map(std::ffi::OsStr::to_os_string);
    let masks_there: Vec<PathBuf> = files(masks)?.into_iter().filter(|it| is_picture(it)).collect();
    let by_stem: std::collections::HashMap<_, _> = masks_there.iter().map(|it| (stem(it), it)).collect();
    let mut rows = Vec::new();
    for image in files(images)?.into_iter().filter(|it| is_picture(it)) {
        match by_stem.get(&stem(&image)) {
            Some(mask) => {
                rows.push(row([(IMAGE_PART, image.display().to_string()), (MASK_PART, mask.display().to_string())]));
            }
            None => {
                let reason = format!("{} has no file of its name, so there is no mask", masks.display());
                return Err(PeftError::bad_file(image, reason));
            }
        }
    }
    Ok(rows)
}

fn last(path: &Path) -> &str {
    path.file_name().and_then(|it| it.to_str()).unwrap_or_default()
}

fn is_picture(path: &Path) -> bool {
    let ending = path.extension().and_then(|it| it.to_str()).unwrap_or_default().to_lowercase();
    ENDINGS.contains(&ending.as_str())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(PeftError::io("read", folder))? {
        paths.push(entry.map_err(PeftError::io("read", folder))?.path());
    }
    paths.retain(|it| !last(it).is_empty() && !last(it).starts_with('.'));
    paths.sort();
    Ok(paths)
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|it| it.is_dir()).collect())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|it| it.is_file()).collect())
}

/// All pictures below a folder.
fn below(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    // A link to a folder above would never end.
    let depth = folder.components().count();
    if depth > 256 {
        return Err(PeftError::bad_file(folder, "its folders have no end: a link leads back"));
    }
    found.extend(files(folder)?.into_iter().filter(|it| is_picture(it)));
    folders(folder)?.iter().try_for_each(|it| below(it, found))
}

/// All pictures in a folder and below it, in the order of their paths.
///
/// # Errors
/// If it is no folder, or holds none.
pub fn pictures_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    below(folder, &mut found)?;
    found.sort();
    match found.is_empty() {
        true => Err(PeftError::bad_file(folder, format!("it holds no picture (.{})", ENDINGS.join(", .")))),
        false => Ok(found),
    }
}

/// Whether there is something to read, said before anything else is done.
///
/// # Errors
/// If there is no such file or folder.
pub fn check(name: &Path) -> Result<()> {
    if name.is_dir() {
        return Ok(());
    }
    let there = |file: &PathBuf| fs::metadata(file).map(|_| ()).map_err(PeftError::io("read", file));
    reading::files_of(name)?.iter().try_for_each(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(path: PathBuf) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"picture").unwrap();
    }

    fn rows(folder: &Path) -> std::result::Result<Vec<(String, String)>, String> {
        let rows = ImageRows::read(folder, &Columns::default()).map_err(|it| it.to_string())?;
        let images = rows.images().map_err(|it| it.to_string())?;
        let label = rows.label_column().map_err(|it| it.to_string())?;
        let labels = rows.data.rows.iter().map(|it| rows.data.text(it, &label).unwrap());
        let name = |path: &PathBuf| path.strip_prefix(folder).unwrap().display().to_string();
        Ok(images.iter().map(name).zip(labels).collect())
    }

    #[test]
    fn a_folder_for_each_class() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["dog/b.PNG", "cat/a.jpg", "cat/more/c.webp", "cat/notes.txt", ".cache/x.png", "loose.png"] {
            picture(at(name));
        }
        fs::create_dir(at("empty")).unwrap();
        let found = rows(folder.path()).unwrap();
        let wanted = [("cat/a.jpg", "cat"), ("cat/more/c.webp", "cat"), ("dog/b.PNG", "dog")];
        assert_eq!(found, wanted.map(|(image, label)| (image.to_owned(), label.to_owned())));
        let empty = rows(&at("empty")).unwrap_err();
        assert!(empty.contains("neither a folder of pictures"), "{empty}");
    }

    #[test]
    fn a_table_names_pictures_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        picture(at("train/1.png"));
        fs::write(at("metadata.csv"), "file_name,label\ntrain/1.png,cat\n").unwrap();
        assert_eq!(rows(folder.path()).unwrap(), [("train/1.png".to_owned(), "cat".to_owned())]);
        fs::write(at("metadata.csv"), "file_name,label\ntrain/2.png,cat\n").unwrap();
        let error = rows(folder.path()).unwrap_err();
        assert!(error.contains("metadata.csv, line 2") && error.contains("train/2.png"), "{error}");
        fs::write(at("metadata.csv"), "file_name,label\nhttps://a.b/2.png,cat\n").unwrap();
        assert!(rows(folder.path()).unwrap_err().contains("download the pictures first"));
        fs::write(at("metadata.csv"), "picture,label\ntrain/1.png,cat\n").unwrap();
        let error = rows(folder.path()).unwrap_err();
        assert!(error.contains("`image`") && error.contains("`picture`"), "{error}");
    }

    #[test]
    fn masks_lie_beside_pictures_under_the_same_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["images/1.jpg", "images/2.jpg", "annotations/1.png", "annotations/2.png"] {
            picture(at(name));
        }
        let rows = ImageRows::read(folder.path(), &Columns::default()).unwrap();
        assert_eq!(rows.masks().unwrap(), [at("annotations/1.png"), at("annotations/2.png")]);
        assert_eq!(rows.images().unwrap(), [at("images/1.jpg"), at("images/2.jpg")]);
        fs::remove_file(at("annotations/2.png")).unwrap();
        let error = ImageRows::read(folder.path(), &Columns::default()).unwrap_err().to_string();
        assert!(error.contains("2.jpg") && error.contains("there is no mask"), "{error}");
    }
}
