/* Signals: the first Ctrl-C, SIGTERM, SIGHUP or broken pipe asks, the second ends the program at once. */
#ifndef ONN_SIGNALS_H
#define ONN_SIGNALS_H

/* signals_install() : takes over SIGINT, SIGTERM, SIGHUP (unless nohup made it ignored) and SIGPIPE. The caller's thread
 * is the one on which `stop` runs, inside a signal handler: it may only do what is safe there. `stop` is not called while
 * signals_handle(1) is in force. Call once. */
void signals_install(void (*stop)(void));

/* signal_pending() : the number of the signal that asked to stop, 0 if none did. Any thread; costs one load. */
int signal_pending(void);

/* signals_handle() : with 1 the program promises to poll signal_pending(), to save and to end by itself; with 0 (the
 * start) a signal stops it wherever it is. */
void signals_handle(int cooperative);

/* signals_clear() : forgets the pending signal; the next one counts as the first again. */
void signals_clear(void);

#endif
