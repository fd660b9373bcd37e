//! Secrets are not shown.

use std::io;
use std::sync::{Arc, Mutex};

use wherry_gateway::origin::{Credential, Origins};

use crate::registry::{explicit, password};
use crate::script::{Reply, Script};
use crate::{repository, settings, tag};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn neither_log_nor_error_nor_debug_form_has_a_credential_or_a_token() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let tokens = Script::start(|number, _| match number {
        0 => Reply::new(200, &[], r#"{"token":"s3cret-token"}"#),
        _ => Reply::new(401, &[], "s3cret-token"),
    })
    .await;
    let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.address);
    let origin = Script::start(move |number, _| match number {
        1 => Reply::new(307, &[("Location", "/x")], ""),
        _ => Reply::new(401, &[("WWW-Authenticate", &challenge)], ""),
    })
    .await;
    for credential in
        [password("anna", "s3cret-password"), Credential::IdentityToken("s3cret-identity".to_owned())]
    {
        let mut settings = settings(&[&origin.host]);
        settings.credentials = explicit(&origin.host, credential);
        let origins = Origins::new(settings.clone()).unwrap();
        let error = origins.manifest(&origin.host, &repository(), &tag("v1")).await.unwrap_err();
        let shown = format!("{error} {error:?} {origins:?} {settings:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("redirected"), "the log was not captured");
    assert!(!logged.contains("s3cret") && !logged.contains("czNjcmV0"), "{logged}");
}
