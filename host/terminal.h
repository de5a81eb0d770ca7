/* Terminal: line editing with history and completion over libedit, and what a terminal is. Lua-free. */
#ifndef ONN_TERMINAL_H
#define ONN_TERMINAL_H

#include <stddef.h>

/* Called on Tab with the line up to the cursor. *insert and *show (either may stay NULL) are freed by terminal.c: the text
 * put at the cursor, and the choices printed below the line. */
typedef void (*Completer)(void *context, const char *before, char **insert, char **show);

typedef enum TerminalLine { LINE_READ, LINE_END, LINE_CANCELLED } TerminalLine;

/* terminal_read() : one line from standard input, without its newline, in *line, owned by this file until the next call.
 * On a terminal it is edited, with `prompt` before it; Ctrl-C cancels it, Ctrl-D on an empty one ends. */
TerminalLine terminal_read(const char *prompt, const char **line);

/* terminal_complete() : sets who answers Tab. Before the first terminal_read(). */
void terminal_complete(Completer completer, void *context);

/* terminal_history() : loads `path` and saves to it after each terminal_remember(). Absent or unwritable files are fine. */
void terminal_history(const char *path);
void terminal_remember(const char *entry);

/* terminal_columns() : width of the terminal on standard error, 80 if there is none. */
int terminal_columns(void);

/* terminal_close() : gives the terminal its modes back. */
void terminal_close(void);

#endif
