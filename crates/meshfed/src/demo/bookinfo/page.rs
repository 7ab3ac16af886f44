//! The product page as HTML.

use axum::response::Html;
use serde_json::Value;

pub async fn index() -> Html<&'static str> {
    Html(
        "<!doctype html><title>Bookinfo</title><h1>Bookinfo</h1>\
         <p><a href=\"/productpage\">The Comedy of Errors</a></p>",
    )
}

pub fn product(details: Option<&Value>, reviews: Option<&Value>) -> String {
    let details = details.map_or_else(
        || "<p>Product details are currently unavailable.</p>".to_owned(),
        |d| {
            format!(
                "<p>{} ({}), {} pages, {}</p>",
                text(&d["author"]),
                text(&d["year"]),
                text(&d["pages"]),
                text(&d["publisher"]),
            )
        },
    );
    let reviews = reviews.and_then(|r| r["reviews"].as_array()).map_or_else(
        || "<p>Product reviews are currently unavailable.</p>".to_owned(),
        |all| all.iter().map(review).collect(),
    );
    format!(
        "<!doctype html><title>The Comedy of Errors</title><h1>The Comedy of Errors</h1>\
         <h2>Book details</h2>{details}<h2>Book reviews</h2>{reviews}"
    )
}

fn review(review: &Value) -> String {
    let stars = review["rating"]["stars"].as_u64().unwrap_or(0).min(5);
    format!(
        "<blockquote>{} <b>{}</b> {}</blockquote>",
        text(&review["text"]),
        text(&review["reviewer"]),
        "\u{2605}".repeat(stars as usize),
    )
}

/// A value as HTML text: other services answer, so nothing of theirs may become markup.
fn text(value: &Value) -> String {
    let plain = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    plain
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_of_other_services_never_become_markup() {
        let details = json!({"author": "<script>", "year": 1, "pages": 2, "publisher": "p"});
        let page = product(Some(&details), None);
        assert!(page.contains("&lt;script&gt;"));
        assert!(page.contains("reviews are currently unavailable"));
    }
}
