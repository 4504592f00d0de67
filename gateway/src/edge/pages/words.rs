//! The built-in pages' words, a language each; the first is the fallback.

pub struct Words {
    /// Lower-case language tag.
    pub tag: &'static str,
    pub logout_title: &'static str,
    pub logout_why: &'static str,
    pub incident_number: &'static str,
    /// `{help}` is whom to ask.
    pub logout_contact: &'static str,
    pub site_people: &'static str,
    pub undo_with_number: &'static str,
    pub undo: &'static str,
    pub log_in_again: &'static str,
    pub challenge_title: &'static str,
    pub challenge_why: &'static str,
    pub challenge_button: &'static str,
}

pub const LANGUAGES: [Words; 4] = [
    Words {
        tag: "en",
        logout_title: "You have been logged out",
        logout_why: "Activity in your session did not look like yours, so the session was ended to protect your \
                     account. Nothing else about your account was changed.",
        incident_number: "Incident number",
        logout_contact: "If this was you, contact {help}.",
        site_people: "the people who run this site",
        undo_with_number: "Quote the incident number: they can undo this.",
        undo: "They can undo this.",
        log_in_again: "Log in again",
        challenge_title: "Please confirm to go on",
        challenge_why: "We noticed unusual activity in this session. Confirm that you are here, and you will be \
                        taken to the page you asked for.",
        challenge_button: "I am here, go on",
    },
    Words {
        tag: "de",
        logout_title: "Sie wurden abgemeldet",
        logout_why: "In Ihrer Sitzung gab es Aktivität, die nicht nach Ihnen aussah. Zum Schutz Ihres Kontos wurde \
                     die Sitzung beendet. Sonst wurde an Ihrem Konto nichts geändert.",
        incident_number: "Vorgangsnummer",
        logout_contact: "Wenn Sie das selbst waren, wenden Sie sich an: {help}.",
        site_people: "die Betreiber dieser Website",
        undo_with_number: "Nennen Sie die Vorgangsnummer; die Abmeldung lässt sich rückgängig machen.",
        undo: "Die Abmeldung lässt sich rückgängig machen.",
        log_in_again: "Erneut anmelden",
        challenge_title: "Bitte bestätigen Sie",
        challenge_why: "Uns ist ungewöhnliche Aktivität in dieser Sitzung aufgefallen. Bestätigen Sie, dass Sie da \
                        sind, dann kommen Sie zur gewünschten Seite.",
        challenge_button: "Ich bin da, weiter",
    },
    Words {
        tag: "fr",
        logout_title: "Vous avez été déconnecté",
        logout_why: "L’activité de votre session ne semblait pas venir de vous. La session a été fermée pour protéger \
                     votre compte. Rien d’autre n’a été modifié.",
        incident_number: "Numéro d’incident",
        logout_contact: "Si c’était bien vous, contactez : {help}.",
        site_people: "les responsables de ce site",
        undo_with_number: "Donnez-leur le numéro d’incident : ils peuvent annuler la déconnexion.",
        undo: "Ils peuvent annuler la déconnexion.",
        log_in_again: "Se reconnecter",
        challenge_title: "Veuillez confirmer pour continuer",
        challenge_why: "Nous avons remarqué une activité inhabituelle dans cette session. Confirmez que vous êtes là \
                        et vous arriverez à la page demandée.",
        challenge_button: "Je suis là, continuer",
    },
    Words {
        tag: "es",
        logout_title: "Se ha cerrado su sesión",
        logout_why: "La actividad de su sesión no parecía suya, así que la sesión se cerró para proteger su cuenta. \
                     No se cambió nada más en su cuenta.",
        incident_number: "Número de incidente",
        logout_contact: "Si era usted, póngase en contacto con: {help}.",
        site_people: "los responsables de este sitio",
        undo_with_number: "Indique el número de incidente: pueden deshacer el cierre.",
        undo: "Pueden deshacer el cierre.",
        log_in_again: "Iniciar sesión de nuevo",
        challenge_title: "Confirme para continuar",
        challenge_why: "Hemos notado una actividad inusual en esta sesión. Confirme que está ahí y llegará a la página \
                        que pidió.",
        challenge_button: "Estoy aquí, continuar",
    },
];
