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
    pub slow_down_title: &'static str,
    pub slow_down_why: &'static str,
    /// `{n}` is a number of at least two.
    pub wait_seconds: &'static str,
    pub wait_minutes: &'static str,
    pub log_out_title: &'static str,
    pub log_out: &'static str,
    pub login_title: &'static str,
    pub login_why: &'static str,
    pub login_failed_title: &'static str,
    pub login_failed_why: &'static str,
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
        slow_down_title: "Too many requests",
        slow_down_why: "More requests came from you, or from the network you share with others, than this site takes at \
                        a time. Your login is not affected.",
        wait_seconds: "Wait {n} seconds, then load the page again.",
        wait_minutes: "Wait {n} minutes, then load the page again.",
        log_out_title: "Log out of this site?",
        log_out: "Log out",
        login_title: "Please log in",
        login_why: "Your login is over, so nothing of what you sent was carried out. Log in, go back and \
                      send it again.",
        login_failed_title: "The login did not work",
        login_failed_why: "The login was cancelled, took too long, or the login service cannot be reached. \
                      Nothing was changed; please try again.",
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
        slow_down_title: "Zu viele Anfragen",
        slow_down_why: "Von Ihnen oder aus dem Netz, das Sie mit anderen teilen, kamen mehr Anfragen, als diese Website auf \
                        einmal annimmt. Ihre Anmeldung ist davon nicht betroffen.",
        wait_seconds: "Warten Sie {n} Sekunden und laden Sie die Seite dann neu.",
        wait_minutes: "Warten Sie {n} Minuten und laden Sie die Seite dann neu.",
        log_out_title: "Von dieser Website abmelden?",
        log_out: "Abmelden",
        login_title: "Bitte melden Sie sich an",
        login_why: "Ihre Anmeldung ist abgelaufen; was Sie gesendet haben, wurde nicht ausgeführt. \
                      Melden Sie sich an, gehen Sie zurück und senden Sie es noch einmal.",
        login_failed_title: "Die Anmeldung ist nicht gelungen",
        login_failed_why: "Die Anmeldung wurde abgebrochen, hat zu lange gedauert, oder der Anmeldedienst ist \
                      nicht erreichbar. Es wurde nichts geändert; bitte versuchen Sie es noch einmal.",
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
        slow_down_title: "Trop de requêtes",
        slow_down_why: "Vous, ou le réseau que vous partagez avec d’autres, avez envoyé plus de requêtes que ce site n’en \
                        accepte à la fois. Votre connexion n’est pas touchée.",
        wait_seconds: "Attendez {n} secondes, puis rechargez la page.",
        wait_minutes: "Attendez {n} minutes, puis rechargez la page.",
        log_out_title: "Se déconnecter de ce site ?",
        log_out: "Se déconnecter",
        login_title: "Veuillez vous connecter",
        login_why: "Votre connexion a expiré ; rien de ce que vous avez envoyé n’a été exécuté. \
                      Connectez-vous, revenez en arrière et renvoyez-le.",
        login_failed_title: "La connexion a échoué",
        login_failed_why: "La connexion a été annulée, a duré trop longtemps, ou le service de connexion est \
                      injoignable. Rien n’a été modifié ; veuillez réessayer.",
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
        slow_down_title: "Demasiadas solicitudes",
        slow_down_why: "Usted, o la red que comparte con otros, ha enviado más solicitudes de las que este sitio acepta a la \
                        vez. Su sesión no se ve afectada.",
        wait_seconds: "Espere {n} segundos y vuelva a cargar la página.",
        wait_minutes: "Espere {n} minutos y vuelva a cargar la página.",
        log_out_title: "¿Cerrar la sesión en este sitio?",
        log_out: "Cerrar sesión",
        login_title: "Inicie sesión",
        login_why: "Su sesión ha caducado; no se ejecutó nada de lo que envió. Inicie sesión, vuelva \
                      atrás y envíelo de nuevo.",
        login_failed_title: "No se pudo iniciar la sesión",
        login_failed_why: "El inicio de sesión se canceló, tardó demasiado, o el servicio no está disponible. \
                      No se cambió nada; inténtelo de nuevo.",
    },
];
