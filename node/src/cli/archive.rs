//! `wherry import` and `wherry export`.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::json;
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncWriteExt as _};

use super::args::{ExportArgs, ImportArgs};
use super::environment::Environment;
use super::failure::Failure;
use super::output::{harmless, note, print, print_json};
use super::progress::reporter;
use super::stop::Stop;
use crate::bundle::{PackError, pack_directory};
use crate::config::units::show_size;
use crate::control::api::ImportSummary;
use crate::control::{Client, ClientError, Step};

pub(super) async fn import(args: &ImportArgs, environment: &Environment) -> Result<(), Failure> {
    let from = args.from.as_path();
    let summary = if from == Path::new("-") {
        send(args, standard(io::stdin().as_fd())?, environment).await?
    } else {
        let unreadable =
            |error: io::Error| Failure::new(format!("{} cannot be read: {error}", from.display()));
        if fs::metadata(from).map_err(unreadable)?.is_dir() {
            // A pair of sockets is a pipe with a blocking and a waiting end.
            let (writer, reader) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            let reader = tokio::net::UnixStream::from_std(reader)?;
            let packed = tokio::task::spawn_blocking({
                let from = from.to_owned();
                move || pack_directory(&from, BufWriter::with_capacity(64 << 10, writer))
            });
            let outcome = send(args, reader, environment).await;
            // When packing failed the node has seen a cut-off archive, and why it was cut off is here.
            match packed.await {
                Ok(Err(error)) if !matches!(error, PackError::Write(_)) => {
                    return Err(Failure::new(error.to_string()));
                }
                _ => outcome?,
            }
        } else {
            let file = tokio::fs::File::open(from).await.map_err(unreadable)?;
            send(args, file, environment).await?
        }
    };
    if args.node.json {
        return print_json(&summary);
    }
    let mut out = String::new();
    for image in &summary.images {
        let name = image.reference.clone().unwrap_or_else(|| format!("<none>@{}", image.digest));
        out += &format!("{} {} {}\n", harmless(&name), image.digest, show_size(image.size));
    }
    if let Some(line) = nameless(&summary, from) {
        note(&line);
    }
    print(&out)
}

/// What an image that came without a name is called by, and how it gets one.
pub(super) fn nameless(summary: &ImportSummary, from: &Path) -> Option<String> {
    let image = summary.images.iter().find(|image| image.reference.is_none())?;
    let (has, tag) = match &image.tag {
        Some(tag) => (format!("the tag {} and no name", harmless(tag)), harmless(tag)),
        None => ("no name".to_owned(), "TAG".to_owned()),
    };
    let called = format!(
        "the archive gives this image {has}: its digest means it, and the first 12 digits do, as in 'wherry inspect {}'",
        image.digest.short()
    );
    let from = match from.to_str() {
        Some("-") | None => "-".to_owned(),
        Some(from) => harmless(from),
    };
    Some(match summary.images.len() {
        1 => format!("{called}; 'wherry import --name REPOSITORY:{tag} {from}' gives it a name"),
        _ => format!("{called}; --name gives one where an archive has a single image"),
    })
}

async fn send(
    args: &ImportArgs,
    archive: impl AsyncRead + Send + 'static,
    environment: &Environment,
) -> Result<ImportSummary, ClientError> {
    let mut lines = args.node.client(environment).import(args.name.as_deref(), archive).await?;
    let mut reporter = reporter(environment);
    loop {
        match lines.next().await? {
            Step::Event(event) => reporter.import(&event),
            Step::Done(summary) => {
                reporter.finish();
                return Ok(summary);
            }
        }
    }
}

pub(super) async fn export(args: &ExportArgs, environment: &Environment) -> Result<(), Failure> {
    let client = args.node.client(environment);
    if args.output == Path::new("-") {
        if args.node.json {
            return Err(Failure::Usage(
                "the archive and JSON cannot both go to standard output: use -o FILE".to_owned(),
            ));
        }
        if environment.stdout_is_terminal {
            return Err(Failure::Usage(
                "an archive is nothing for a terminal: use -o FILE, or a pipe".to_owned(),
            ));
        }
        return match client.export(&args.reference, &mut standard(io::stdout().as_fd())?).await {
            // Not as where a list is cut off by its reader: a part of an archive is none.
            Err(ClientError::Local(error)) => Err(Failure::new(format!(
                "the archive was not written to its end: {}",
                what_the_system_said(&error)
            ))),
            exported => exported.map(drop).map_err(Failure::from),
        };
    }
    let unwritable = |error: io::Error| {
        Failure::new(format!("{} cannot be written: {}", args.output.display(), what_the_system_said(&error)))
    };
    // Behind a symbolic link its target is written, as by any program.
    let place = match fs::canonicalize(&args.output) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => args.output.clone(),
        place => place.map_err(unwritable)?,
    };
    let mut stop = Stop::new()?;
    let write = async {
        match fs::metadata(&place) {
            Ok(kind) if !kind.is_file() => into_what_is_there(&client, &args.reference, &place).await,
            _ => in_its_place(&client, &args.reference, &place).await,
        }
    };
    let (name, bytes) = tokio::select! {
        exported = write => match exported {
            Err(ClientError::Local(error)) => return Err(unwritable(error)),
            exported => exported?,
        },
        status = stop.asked() => {
            let message = "the archive was not written to its end".to_owned();
            return Err(Failure::Interrupted { status, message, hint: None });
        }
    };
    if args.node.json {
        return print_json(&json!({
            "reference": name,
            "output": args.output.display().to_string(),
            "bytes": bytes,
        }));
    }
    note(&format!("{} written to {}", show_size(bytes), args.output.display()));
    Ok(())
}

/// Writes an archive into a device or a pipe: another file in its place would be of no use to whoever reads there, and
/// would take a device from everybody.
async fn into_what_is_there(
    client: &Client,
    reference: &str,
    place: &Path,
) -> Result<(String, u64), ClientError> {
    let mut file = tokio::fs::OpenOptions::new().write(true).open(place).await.map_err(ClientError::Local)?;
    client.export(reference, &mut file).await
}

/// Writes an archive beside its place, so that it appears there whole or not at all.
async fn in_its_place(client: &Client, reference: &str, place: &Path) -> Result<(String, u64), ClientError> {
    let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let local = ClientError::Local;
    let partial = NamedTempFile::with_prefix_in(".wherry-export-", folder).map_err(local)?;
    let mut file = tokio::fs::File::from_std(partial.reopen().map_err(local)?);
    let exported = client.export(reference, &mut file).await?;
    file.flush().await.map_err(local)?;
    // Temporary files are for their owner alone; an archive has the permissions of any new file.
    let mode = rustix::fs::Mode::from_raw_mode(0o666) & !umask();
    rustix::fs::fchmod(partial.as_file(), mode).map_err(|errno| local(errno.into()))?;
    partial.as_file().sync_all().map_err(local)?;
    partial.persist(place).map_err(|error| local(error.error))?;
    Ok(exported)
}

/// An error without the name of the temporary file that it was about.
fn what_the_system_said(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" at path \"").next().unwrap_or(&text).to_owned()
}

/// Standard input or output as a file, without the buffer that the standard library puts before it.
fn standard(stream: BorrowedFd<'_>) -> io::Result<tokio::fs::File> {
    Ok(tokio::fs::File::from_std(File::from(stream.try_clone_to_owned()?)))
}

/// The process's file mode creation mask. It can only be read by setting it; no other thread makes files here.
fn umask() -> rustix::fs::Mode {
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::umask(mask);
    mask
}
