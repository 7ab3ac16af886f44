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
#[command(after_help = "Exit status: 0 no change, 1 change, 2 error")]
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
    // As kubectl: what names no namespace goes where the user works.
    let namespace = &mesh.world.mesh.system_namespace;
    let mut hypothesis = Hypothesis::new(&mesh.world);
    for (file, text) in &texts {
        let all = manifests
            .read(text, namespace)
            .with_context(|| file.clone())?;
        for manifest in &all {
            suppose(&mut hypothesis, &manifests, manifest, options.delete)
                .with_context(|| file.clone())?;
        }
    }
    if let Some((object, namespace)) = hypothesis.homeless() {
        bail!("{object} is in the namespace {namespace}, which does not exist");
    }
    let mut answer = hypothesis.judge();
    answer.unknown.extend(mesh.seen.unknown.iter().cloned());
    output::print(&answer, options.output)?;
    Ok(exit(!answer.difference.is_empty()))
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
    if !manifest.is_known() {
        output::remark(&format!(
            "{shown} is passed over: nothing that is shared depends on it"
        ));
        return Ok(());
    }
    if delete {
        hypothesis.remove(&id.group, &id.kind, &key);
        return Ok(());
    }
    let live = hypothesis.live(&id.group, &id.kind, &key);
    let object = manifests.apply(manifest, live.as_ref())?;
    hypothesis
        .put(&id.group, &id.kind, key, object)
        .with_context(|| format!("{shown} cannot be used"))?;
    Ok(())
}

/// All files with their texts, in the order in which they are applied.
fn read(options: &DiffOptions) -> anyhow::Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for path in &options.filename {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin()
                .take(LARGEST_FILE)
                .read_to_string(&mut text)
                .context("cannot read standard input")?;
            texts.push(("standard input".to_owned(), text));
        } else if path.is_dir() {
            let files = files_of(path, options.recursive)?;
            if files.is_empty() {
                bail!("{} has no .yaml, .yml or .json files", path.display());
            }
            for file in files {
                texts.push(text_of(&file)?);
            }
        } else {
            texts.push(text_of(path)?);
        }
    }
    Ok(texts)
}

fn text_of(path: &Path) -> anyhow::Result<(String, String)> {
    let name = path.display().to_string();
    let size = std::fs::metadata(path).map(|m| m.len());
    let size = size.with_context(|| format!("cannot read {name}"))?;
    if size > LARGEST_FILE {
        bail!("{name} is larger than {LARGEST_FILE} bytes");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
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
