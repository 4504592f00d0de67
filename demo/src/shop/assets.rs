//! The shop's static files: gzip where the browser takes it, and an ETag for either form.

use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::sync::LazyLock;

struct Asset {
    name: &'static str,
    media_type: &'static str,
    plain: &'static [u8],
    gzip: Vec<u8>,
    /// Quoted, without the suffix of the compressed form.
    tag: String,
}

static ASSETS: LazyLock<[Asset; 2]> = LazyLock::new(|| {
    [
        asset("shop.css", "text/css; charset=utf-8", include_bytes!("../../assets/shop.css")),
        asset("shop.js", "text/javascript; charset=utf-8", include_bytes!("../../assets/shop.js")),
    ]
});

fn asset(name: &'static str, media_type: &'static str, plain: &'static [u8]) -> Asset {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to memory does not fail; an empty form is served plain.
    let gzip = encoder.write_all(plain).and_then(|()| encoder.finish()).unwrap_or_default();
    let tag = Sha256::digest(plain).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Asset { name, media_type, plain, gzip, tag }
}

pub async fn serve(Path(file): Path<String>, headers: HeaderMap) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == file) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let has =
        |name, word: &str| headers.get(name).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains(word));
    let gzip = !asset.gzip.is_empty() && has(header::ACCEPT_ENCODING, "gzip");
    let tag = format!("\"{}{}\"", asset.tag, if gzip { "-gzip" } else { "" });
    let common = [
        (header::ETAG, tag.clone()),
        (header::VARY, "Accept-Encoding".into()),
        (header::CACHE_CONTROL, "no-cache".into()),
    ];
    if has(header::IF_NONE_MATCH, &tag) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    let media_type = [(header::CONTENT_TYPE, asset.media_type)];
    if gzip {
        (common, media_type, [(header::CONTENT_ENCODING, "gzip")], asset.gzip.as_slice()).into_response()
    } else {
        (common, media_type, asset.plain).into_response()
    }
}
