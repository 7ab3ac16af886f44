//! What the shop sells, and what people say about it.

use serde_json::{Value, json};

use super::client::CallError;

pub fn ratings(id: u64) -> Value {
    json!({"id": id, "ratings": {"Reviewer1": 5, "Reviewer2": 4}})
}

pub fn details(id: u64) -> Value {
    json!({
        "id": id,
        "author": "William Shakespeare",
        "year": 1595,
        "type": "paperback",
        "pages": 200,
        "publisher": "PublisherA",
        "language": "English",
        "ISBN-10": "1234567890",
        "ISBN-13": "123-1234567890",
    })
}

pub fn products() -> Value {
    json!([{
        "id": 0,
        "title": "The Comedy of Errors",
        "descriptionHtml": "Two pairs of twins, one city and a day of mistaken identities.",
    }])
}

/// Reviews, with stars of a colour for the versions that ask ratings.
pub fn reviews(
    id: &str,
    pod: &str,
    cluster: &str,
    stars: Option<(&str, Result<Value, CallError>)>,
) -> Value {
    let texts = [
        ("Reviewer1", "I laughed from the first scene to the last."),
        (
            "Reviewer2",
            "Short, quick and funny; one more twin would have been too many.",
        ),
    ];
    let reviews: Vec<Value> = texts
        .iter()
        .map(|(reviewer, text)| {
            let mut review = json!({"reviewer": reviewer, "text": text});
            match &stars {
                None => {}
                Some((color, Ok(ratings))) => {
                    review["rating"] =
                        json!({"stars": ratings["ratings"][*reviewer], "color": color});
                }
                Some((_, Err(_))) => {
                    review["rating"] = json!({"error": "Ratings service is currently unavailable"});
                }
            }
            review
        })
        .collect();
    json!({"id": id, "podname": pod, "clustername": cluster, "reviews": reviews})
}
