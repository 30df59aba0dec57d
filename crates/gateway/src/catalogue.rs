//! Reads the catalogue: what ships, or one file in its place, and the operator's own files on top.

use std::path::{Path, PathBuf};

use cxmpute_market::catalogue::Catalogue;
use cxmpute_runtime::exit::{self, ExitError};

use crate::config::CatalogueConfig;

/// Reads what the configuration names.
///
/// # Errors
/// A file cannot be read, or an entry is wrong: file, line, key and reason.
pub fn load(config: &CatalogueConfig) -> Result<Catalogue, ExitError> {
    let mut catalogue = base(config)?;
    add(&mut catalogue, &config.files, "catalogue.files")?;
    Ok(catalogue)
}

/// What ships with the program, or the file that takes its place.
///
/// # Errors
/// As [`load`].
pub fn base(config: &CatalogueConfig) -> Result<Catalogue, ExitError> {
    let Some(path) = &config.path else {
        return Catalogue::shipped().map_err(|error| ExitError::new(exit::CONFIG, error.to_string()));
    };
    let mut catalogue = Catalogue::default();
    read(&mut catalogue, path, "catalogue.path")?;
    Ok(catalogue)
}

/// Adds the entries of files, and of the files of folders. `key` is where the paths come from, for complaints.
///
/// # Errors
/// As [`load`].
pub fn add(catalogue: &mut Catalogue, paths: &[PathBuf], key: &str) -> Result<(), ExitError> {
    for path in paths {
        if path.is_dir() {
            for file in files_of(path).map_err(|error| unreadable(path, key, error))? {
                read(catalogue, &file, key)?;
            }
        } else {
            read(catalogue, path, key)?;
        }
    }
    Ok(())
}

/// The TOML files of a folder in the order of their names, so that every start reads the same.
fn files_of(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn read(catalogue: &mut Catalogue, path: &Path, key: &str) -> Result<(), ExitError> {
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, key, error))?;
    catalogue
        .read(&text, &path.display().to_string())
        .map_err(|error| ExitError::new(exit::CONFIG, error.to_string()))
}

fn unreadable(path: &Path, key: &str, error: std::io::Error) -> ExitError {
    let message =
        format!("The catalogue {} ({key}) cannot be read; correct the path or leave it out.", path.display());
    ExitError::caused(exit::MODEL_MISSING, message, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> String {
        format!(
            "[[model]]\nid = \"{id}\"\nkind = \"scrape\"\nengines = [\"scrape\"]\nprice = {{ version = 1, url = 1 }}\n"
        )
    }

    #[test]
    fn files_and_folders_come_on_top_of_what_ships_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("catalogue.d");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(inside.join("b.toml"), entry("b")).unwrap();
        std::fs::write(inside.join("a.toml"), entry("a")).unwrap();
        std::fs::write(inside.join("notes.txt"), "no TOML").unwrap();
        let alone = folder.path().join("c.toml");
        std::fs::write(&alone, entry("c")).unwrap();
        let mut config = CatalogueConfig { files: vec![alone.clone(), inside.clone()], ..Default::default() };
        let shipped = Catalogue::shipped().unwrap().entries().len();
        let all = load(&config).unwrap();
        let added: Vec<&str> = all.entries()[shipped..].iter().map(|entry| &*entry.id).collect();
        assert_eq!(added, ["c", "a", "b"]);

        config.path = Some(alone.clone());
        let message = load(&config).unwrap_err().to_string();
        assert!(message.contains("c.toml:2: model.id: `c` names another model already"), "{message}");
        config.files = vec![inside.clone()];
        assert_eq!(load(&config).unwrap().entries().len(), 3, "one file in the place of what ships");

        std::fs::write(inside.join("b.toml"), entry("b").replace("url = 1", "url = 0")).unwrap();
        let message = load(&config).unwrap_err().to_string();
        assert!(message.contains("b.toml:5: model.price.url: 0 is not above 0"), "{message}");
        config.files = vec![folder.path().join("gone.toml")];
        let message = load(&config).unwrap_err().to_string();
        assert!(message.contains("gone.toml (catalogue.files)"), "{message}");
    }
}
