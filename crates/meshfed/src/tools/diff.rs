//! `meshfed diff`: what applying files would share or take back, with nothing applied.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use meshfed_apiserver::{Manifest, Manifests};
use meshfed_federation::whatif::Hypothesis;
use meshfed_federation::world::ObjectKey;

use super::mesh::Mesh;
use super::output::{self, Format};
use super::{Access, exit};

/// Endings of the files that are read of a directory, as kubectl does.
const ENDINGS: [&str; 3] = ["json", "yaml", "yml"];
/// Bytes of one file.
const LARGEST_FILE: u64 = 64 * 1024 * 1024;

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Exit status: 0 nothing to look at, 1 a change, a new problem or something not known, 2 error"
)]
pub struct DiffOptions {
    #[command(flatten)]
    access: Access,

    /// File, directory, or - for standard input; may be given several times
    #[arg(short, long, value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,

    /// Read directories with everything below them
    #[arg(short = 'R', long)]
    recursive: bool,

    /// What deleting the objects in the files would do, instead of applying them
    #[arg(long)]
    delete: bool,

    /// For machines, instead of text
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

pub async fn run(options: &DiffOptions) -> anyhow::Result<ExitCode> {
    let texts = read(options)?;
    let manifests = Manifests::new(&meshfed_api::crds())?;
    let mesh = Mesh::look(&options.access).await?;
    let mut hypothesis = Hypothesis::new(&mesh.world);
    let mut objects = 0;
    for (file, text) in &texts {
        // As kubectl: what names no namespace goes where the user works.
        let all = manifests
            .read(text, &mesh.home)
            .with_context(|| file.clone())?;
        objects += all.len();
        for manifest in &all {
            suppose(&mut hypothesis, &manifests, manifest, options.delete)
                .with_context(|| file.clone())?;
        }
    }
    if objects == 0 {
        let files: Vec<&str> = texts.iter().map(|(file, _)| file.as_str()).collect();
        bail!("there is no object in {}", files.join(", "));
    }
    let mut answer = hypothesis.judge();
    let found = answer.is_notable();
    // Known neither before nor after, whatever the files say.
    answer.unknown.extend(mesh.seen.unknown.iter().cloned());
    output::print(&answer, options.output)?;
    Ok(exit(found))
}

/// Puts one manifest into the hypothesis.
fn suppose(
    hypothesis: &mut Hypothesis,
    manifests: &Manifests,
    manifest: &Manifest,
    delete: bool,
) -> anyhow::Result<()> {
    let id = &manifest.key;
    let shown = format!("{} {}", id.kind, id.name);
    let key = ObjectKey::new(id.namespace.clone(), id.name.clone());
    if !hypothesis.depends_on(&id.group, &id.kind, &key) {
        output::remark(&format!(
            "{shown} is passed over: nothing that is shared depends on it"
        ));
        return Ok(());
    }
    if delete {
        if !hypothesis.remove(&id.group, &id.kind, &key) {
            bail!("{shown} cannot be deleted: there is none{}", place(&key));
        }
        return Ok(());
    }
    let live = hypothesis.live(&id.group, &id.kind, &key);
    if live.is_none() && !hypothesis.has_home(&key) {
        let namespace = &key.namespace;
        bail!("{shown} is in the namespace {namespace}, which does not exist or is being deleted");
    }
    let object = manifests
        .apply(manifest, live.as_ref())
        .with_context(|| format!("{shown} cannot be applied{}", place(&key)))?;
    hypothesis
        .put(&id.group, &id.kind, key, object)
        .with_context(|| format!("{shown} cannot be used"))?;
    Ok(())
}

fn place(key: &ObjectKey) -> String {
    match key.namespace.as_str() {
        "" => String::new(),
        namespace => format!(" in {namespace}"),
    }
}

/// All files with their texts, in the order in which they are applied.
fn read(options: &DiffOptions) -> anyhow::Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    let mut stdin = false;
    for path in &options.filename {
        if path.as_os_str() == "-" {
            if std::mem::replace(&mut stdin, true) {
                bail!("standard input can be read once only");
            }
            texts.push(text_of("standard input".to_owned(), std::io::stdin())?);
        } else if path.is_dir() {
            let files = files_of(path, options.recursive)?;
            if files.is_empty() {
                bail!("{} has no .yaml, .yml or .json files", path.display());
            }
            for file in files {
                texts.push(text_of_file(&file)?);
            }
        } else {
            texts.push(text_of_file(path)?);
        }
    }
    Ok(texts)
}

fn text_of_file(path: &Path) -> anyhow::Result<(String, String)> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {name}"))?;
    text_of(name, file)
}

/// What can be read, with its name. Too much is an error, not a shorter text.
fn text_of(name: String, from: impl std::io::Read) -> anyhow::Result<(String, String)> {
    let mut text = String::new();
    from.take(LARGEST_FILE + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {name}"))?;
    if text.len() as u64 > LARGEST_FILE {
        bail!("{name} is larger than {LARGEST_FILE} bytes");
    }
    Ok((name, text))
}

/// The manifests of a directory, sorted; with those below it if that is asked for.
fn files_of(dir: &Path, recursive: bool) -> anyhow::Result<Vec<PathBuf>> {
    let cannot = || format!("cannot read the directory {}", dir.display());
    let mut entries = std::fs::read_dir(dir)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(cannot)?;
    entries.sort_by_key(std::fs::DirEntry::path);
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.path();
        // A link to a directory could lead back up.
        if entry.file_type().with_context(cannot)?.is_dir() {
            if recursive {
                files.extend(files_of(&path, true)?);
            }
        } else if path
            .extension()
            .and_then(|ending| ending.to_str())
            .is_some_and(|ending| ENDINGS.contains(&ending))
        {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_refused_not_cut() {
        let endless = || std::io::repeat(b' ');
        let read = |from| text_of("it".to_owned(), from);
        let largest = read(endless().take(LARGEST_FILE)).unwrap();
        assert_eq!(largest.1.len() as u64, LARGEST_FILE);
        let error = read(endless().take(u64::MAX)).unwrap_err();
        assert!(error.to_string().starts_with("it is larger"), "{error}");
    }
}
