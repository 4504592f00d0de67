//! The shop's HTML, written by hand as in the old days. Everything variable comes from fixed lists.

use super::login;
use axum::response::Html;
use std::collections::BTreeMap;

pub struct Article {
    pub name: &'static str,
    title: &'static str,
    /// List price, euro cents.
    pub cents: u32,
    text: &'static str,
}

pub const ARTICLES: &[Article] = &[
    Article { name: "teapot", title: "Teapot", cents: 3490, text: "Holds six cups and a grudge." },
    Article { name: "green-tea", title: "Green tea", cents: 890, text: "Picked before breakfast." },
    Article { name: "honey", title: "Forest honey", cents: 1250, text: "From bees with opinions." },
    Article { name: "bread", title: "Rye bread", cents: 540, text: "Baked at four, sold by nine." },
    Article { name: "cheese", title: "Mountain cheese", cents: 1680, text: "Aged two winters." },
    Article { name: "olives", title: "Olives", cents: 720, text: "In oil, with a little lemon." },
    Article { name: "lamp", title: "Reading lamp", cents: 5900, text: "Bends, never breaks." },
    Article { name: "blanket", title: "Wool blanket", cents: 7900, text: "Warm as an argument." },
    Article { name: "plant", title: "Window plant", cents: 1490, text: "Forgives three weeks of neglect." },
    Article { name: "basket", title: "Basket", cents: 2290, text: "Woven on the island." },
    Article { name: "clock", title: "Kitchen clock", cents: 4450, text: "Right, mostly." },
    Article { name: "kettle", title: "Kettle", cents: 3990, text: "Whistles in tune." },
];

pub fn article(name: &str) -> Option<&'static Article> {
    ARTICLES.iter().find(|article| article.name == name)
}

pub fn home(user: Option<&str>) -> Html<String> {
    let featured: String = ARTICLES.iter().take(4).map(card).collect();
    page(
        "Welcome",
        user,
        &format!(
            "<h1>Things for a quiet kitchen</h1><p id=\"news\" class=\"news\">…</p>\
             <div class=\"grid\">{featured}</div><p><a href=\"/catalogue\">The whole catalogue</a></p>"
        ),
    )
}

pub fn catalogue(user: Option<&str>) -> Html<String> {
    let all: String = ARTICLES.iter().map(card).collect();
    page("Catalogue", user, &format!("<h1>Catalogue</h1><div class=\"grid\">{all}</div>"))
}

pub fn product(user: Option<&str>, article: &Article) -> Html<String> {
    let Article { name, title, text, .. } = article;
    let picture = picture(article);
    // Enough to read and scroll through that a visit leaves traces.
    let reviews: String = (1..=12)
        .map(|n| {
            format!(
                "<p class=\"review\"><b>Customer {n}</b>: would buy the {} again.</p>",
                title.to_lowercase()
            )
        })
        .collect();
    page(
        title,
        user,
        &format!(
            "<h1>{title}</h1>{picture}<p>{text}</p>\
             <p class=\"price\" data-article=\"{name}\">{}</p>\
             <form method=\"post\" action=\"/cart\"><input type=\"hidden\" name=\"article\" value=\"{name}\">\
             <label>Pieces <input name=\"pieces\" type=\"number\" min=\"1\" max=\"9\" value=\"1\"></label>\
             <button>Into the cart</button></form>\
             <label>A note for us<textarea rows=\"3\" cols=\"50\"></textarea></label><h2>Reviews</h2>{reviews}",
            euros(article.cents)
        ),
    )
}

pub fn cart(user: &str, cart: &BTreeMap<&'static str, u32>) -> Html<String> {
    let mut sum = 0;
    let rows: String = cart
        .iter()
        .filter_map(|(name, pieces)| Some((article(name)?, *pieces)))
        .map(|(article, pieces)| {
            sum += article.cents * pieces;
            format!(
                "<tr><td>{} <a href=\"/product/{}\">{}</a></td><td>{pieces}</td><td>{}</td><td>\
                 <form method=\"post\" action=\"/cart\"><input type=\"hidden\" name=\"article\" value=\"{}\">\
                 <input type=\"hidden\" name=\"pieces\" value=\"0\"><button>Remove</button></form></td></tr>",
                picture(article),
                article.name,
                article.title,
                euros(article.cents * pieces),
                article.name
            )
        })
        .collect();
    let body = if rows.is_empty() {
        "<h1>Your cart</h1><p>Still empty. <a href=\"/catalogue\">Have a look around.</a></p>".to_string()
    } else {
        format!(
            "<h1>Your cart</h1><table>{rows}<tr><th>Together</th><th></th><th>{}</th></tr></table>",
            euros(sum)
        )
    };
    page("Cart", Some(user), &body)
}

pub fn account(user: &str, nonce: &str) -> Html<String> {
    page_with_script(
        "Account",
        Some(user),
        &format!(
            "<h1>Hello, {user}</h1><p>Your session began <time id=\"since\">just now</time> ago.</p>\
             <p>Photo: <input type=\"file\" id=\"photo\"> <output id=\"received\"></output></p>\
             <p id=\"cart-line\">…</p>\
             <script nonce=\"{nonce}\">const began=performance.timeOrigin;setInterval(()=>{{\
             document.getElementById('since').textContent=Math.round((Date.now()-began)/1000)+' s'}},1000)</script>"
        ),
        &format!("<script src=\"/static/shop.js\" defer nonce=\"{nonce}\"></script>"),
    )
}

pub fn login(user: Option<&str>, complaint: Option<&str>) -> Html<String> {
    let complaint = complaint.map(|text| format!("<p class=\"complaint\">{text}</p>")).unwrap_or_default();
    let options: String =
        login::USERS.iter().rev().map(|user| format!("<option value=\"{user}\">{user}</option>")).collect();
    page(
        "Log in",
        user,
        &format!(
            "<h1>Log in</h1>{complaint}<form method=\"post\" action=\"/login\" class=\"login\">\
             <label>User <select name=\"user\">{options}</select></label>\
             <label>Password <input name=\"password\" type=\"password\" placeholder=\"demo\" autocomplete=\"off\">\
             </label><button>Log in</button></form><p>Everybody's password is <code>{}</code>.</p>",
            login::PASSWORD
        ),
    )
}

pub fn missing(user: Option<&str>) -> Html<String> {
    page("Not found", user, "<h1>Not found</h1><p>We do not carry that.</p>")
}

fn card(article: &Article) -> String {
    format!(
        "<a class=\"card\" href=\"/product/{}\">{}<b>{}</b>\
         <span class=\"price\" data-article=\"{}\">{}</span></a>",
        article.name,
        picture(article),
        article.title,
        article.name,
        euros(article.cents)
    )
}

/// Its initial on a tile: the shop could never afford a photographer.
fn picture(article: &Article) -> String {
    format!("<span class=\"picture\">{}</span>", &article.title[..1])
}

fn euros(cents: u32) -> String {
    format!("{}.{:02} €", cents / 100, cents % 100)
}

fn page(title: &str, user: Option<&str>, body: &str) -> Html<String> {
    page_with_script(title, user, body, "<script src=\"/static/shop.js\" defer></script>")
}

fn page_with_script(title: &str, user: Option<&str>, body: &str, script: &str) -> Html<String> {
    let who = match user {
        Some(user) => format!(
            "<a href=\"/account\">{user}</a> <form method=\"post\" action=\"/logout\"><button>Log out</button></form>"
        ),
        None => "<a href=\"/login\">Log in</a>".into(),
    };
    Html(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title} · The Quiet Kitchen</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<link rel=\"stylesheet\" href=\"/static/shop.css\">\n{script}\n</head>\n\
         <body><header><a class=\"brand\" href=\"/\">The Quiet Kitchen</a><nav><a href=\"/catalogue\">Catalogue</a> \
         <a href=\"/cart\">Cart</a> {who}</nav></header>\n<main>{body}</main>\n\
         <footer>Since 1998. This shop has not been changed since.</footer></body>\n</html>\n"
    ))
}
