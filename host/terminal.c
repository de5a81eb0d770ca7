#include "terminal.h"

#include <errno.h>
#include <histedit.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#include "signals.h"

enum { HISTORY_ENTRIES = 2000, UTF8_BYTES = 4 };

static EditLine *editor;
static History *past;
static char *history_path, *text, *current_prompt;
static size_t text_size;
static int cancelled;
static Completer completer;
static void *completer_context;

static char *prompt_of(EditLine *e) {
    (void)e;
    return current_prompt;
}

/* poll() is not restarted after a signal, whatever its flags: so Ctrl-C comes through here. */
static int read_character(EditLine *e, wchar_t *out) {
    mbstate_t state = {0};
    struct pollfd input = {.fd = 0, .events = POLLIN};
    (void)e;
    for (int used = 0; used < UTF8_BYTES;) {
        unsigned char byte;
        if (poll(&input, 1, -1) < 0) {
            if (errno == EINTR && !signal_pending())
                continue;
            cancelled = 1;
            return -1;
        }
        ssize_t n = read(0, &byte, 1);
        if (n <= 0)
            return (int)n;
        size_t length = mbrtowc(out, (char *)&byte, 1, &state);
        if (length == (size_t)-2) {
            used++;
            continue;
        }
        if (length == (size_t)-1)
            *out = L'?';
        else if (length == 0)
            *out = 0;
        return 1;
    }
    *out = L'?';
    return 1;
}

static unsigned char on_tab(EditLine *e, int key) {
    const LineInfo *info = el_line(e);
    char *before = strndup(info->buffer, (size_t)(info->cursor - info->buffer)), *insert = NULL, *show = NULL;
    unsigned char answer = CC_ERROR;
    (void)key;
    if (before && completer)
        completer(completer_context, before, &insert, &show);
    if (insert && *insert && el_insertstr(e, insert) == 0)
        answer = CC_REFRESH;
    if (show && *show) {
        printf("\n%s\n", show);
        fflush(stdout);
        answer = CC_REDISPLAY;
    }
    free(before);
    free(insert);
    free(show);
    return answer;
}

static int open_editor(void) {
    HistEvent event;
    if (editor)
        return 1;
    editor = el_init("onn", stdin, stdout, stderr);
    if (!editor)
        return 0;
    past = history_init();
    if (past) {
        history(past, &event, H_SETSIZE, HISTORY_ENTRIES);
        history(past, &event, H_SETUNIQUE, 1);
        if (history_path)
            history(past, &event, H_LOAD, history_path);
        el_set(editor, EL_HIST, history, past);
    }
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_PROMPT, prompt_of);
    el_set(editor, EL_GETCFN, read_character);
    el_set(editor, EL_ADDFN, "onn-complete", "complete a Lua name", on_tab);
    el_set(editor, EL_BIND, "\t", "onn-complete", NULL);
    el_source(editor, NULL);
    return 1;
}

static TerminalLine read_edited(const char *prompt, const char **line) {
    int length = 0;
    const char *given;
    free(current_prompt);
    current_prompt = strdup(prompt);
    cancelled = 0;
    signals_handle(1);
    given = el_gets(editor, &length);
    signals_handle(0);
    if (cancelled) {
        int asked = signal_pending();
        signals_clear();
        el_reset(editor);
        putchar('\n');
        return asked == SIGINT ? LINE_CANCELLED : LINE_END;
    }
    if (!given || length <= 0) {
        putchar('\n');
        return LINE_END;
    }
    free(text);
    text = strndup(given, (size_t)length - (given[length - 1] == '\n'));
    text_size = 0;
    *line = text ? text : "";
    return LINE_READ;
}

TerminalLine terminal_read(const char *prompt, const char **line) {
    fflush(stdout);
    if (isatty(0) && isatty(1) && open_editor())
        return read_edited(prompt, line);
    ssize_t length = getline(&text, &text_size, stdin);
    if (length < 0)
        return LINE_END;
    if (length && text[length - 1] == '\n')
        text[length - 1] = 0;
    *line = text;
    return LINE_READ;
}

void terminal_complete(Completer answer, void *context) {
    completer = answer;
    completer_context = context;
}

void terminal_history(const char *path) {
    free(history_path);
    history_path = strdup(path);
}

void terminal_remember(const char *entry) {
    HistEvent event;
    if (!past)
        return;
    history(past, &event, H_ENTER, entry);
    if (history_path)
        history(past, &event, H_SAVE, history_path);
}

int terminal_columns(void) {
    struct winsize size;
    return ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}

void terminal_close(void) {
    if (editor)
        el_end(editor);
    if (past)
        history_end(past);
    editor = NULL;
    past = NULL;
    free(history_path);
    free(current_prompt);
    free(text);
    history_path = current_prompt = text = NULL;
    text_size = 0;
}
