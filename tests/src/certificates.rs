//! Certificates for gateways, made by openssl.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::process::{run, tool};

const LIMIT: Duration = Duration::from_secs(60);

/// The files of a certificate.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// A folder with nothing but what vouches for it, as `--cert-dir` of podman and skopeo has it.
    pub trusted: PathBuf,
    /// What vouches for it, and that authority's private key behind it.
    pub authority: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificate {
    /// One for this IP address that vouches for itself.
    ///
    /// # Errors
    /// With all that openssl said.
    pub fn of_its_own(folder: &Path, address: &str) -> Result<Self> {
        let mut openssl = tool("openssl", LIMIT);
        openssl.current_dir(folder).args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        openssl.args(["-subj", "/CN=gateway", "-addext", &format!("subjectAltName=IP:{address}")]);
        run(openssl.args(["-keyout", "key.pem", "-out", "gateway.crt"]))?;
        Ok(Self {
            trusted: trusted(folder, "gateway.crt")?,
            authority: folder.join("gateway.crt"),
            certificate: folder.join("gateway.crt"),
            key: folder.join("key.pem"),
        })
    }

    /// One for this IP address that an authority vouches for.
    ///
    /// # Errors
    /// With all that openssl said.
    pub fn by_an_authority(folder: &Path, address: &str) -> Result<Self> {
        let openssl = |arguments: &[&str]| {
            let mut openssl = tool("openssl", LIMIT);
            run(openssl.current_dir(folder).args(arguments)).map(drop)
        };
        let new = ["-newkey", "rsa:2048", "-nodes"];
        let mut authority = vec!["req", "-x509", "-days", "2", "-subj", "/CN=authority", "-out", "ca.crt"];
        authority.extend(["-keyout", "ca.key"].iter().chain(&new));
        openssl(&authority)?;
        let mut request = vec!["req", "-subj", "/CN=gateway", "-out", "gateway.csr", "-keyout", "key.pem"];
        request.extend(new);
        openssl(&request)?;
        fs::write(folder.join("names"), format!("subjectAltName=IP:{address}\nbasicConstraints=CA:FALSE\n"))?;
        let signed =
            ["x509", "-req", "-in", "gateway.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
        let signed: Vec<&str> = signed.into_iter().chain(["-days", "2", "-extfile", "names"]).collect();
        openssl(&[&signed[..], &["-out", "gateway.crt"]].concat())?;
        let authority = folder.join("authority.pem");
        let both = fs::read_to_string(folder.join("ca.crt"))? + &fs::read_to_string(folder.join("ca.key"))?;
        fs::write(&authority, both)?;
        let (certificate, key) = (folder.join("gateway.crt"), folder.join("key.pem"));
        Ok(Self { trusted: trusted(folder, "ca.crt")?, authority, certificate, key })
    }
}

fn trusted(folder: &Path, authority: &str) -> Result<PathBuf> {
    let trusted = folder.join("trusted");
    fs::create_dir(&trusted)?;
    fs::copy(folder.join(authority), trusted.join("authority.crt"))?;
    Ok(trusted)
}
