#include "signals.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>

static atomic_int pending;
static atomic_int cooperative;
static pthread_t main_thread;
static void (*stop_main)(void);

int signal_pending(void) {
    return atomic_load_explicit(&pending, memory_order_relaxed);
}

void signals_handle(int on) {
    atomic_store(&cooperative, on != 0);
}

void signals_clear(void) {
    alarm(0);
    atomic_store(&pending, 0);
}

/* A second broken pipe is no second wish of the user's: a loop that prints and saves meets many. */
static void on_signal(int number) {
    int none = 0;
    if (!pthread_equal(pthread_self(), main_thread)) {
        pthread_kill(main_thread, number);
        return;
    }
    if (atomic_compare_exchange_strong(&pending, &none, number)) {
        if (!atomic_load(&cooperative)) {
            stop_main();
            alarm(1);
        }
    } else if (number != SIGPIPE || !atomic_load(&cooperative)) {
        _exit(128 + none);
    }
}

/* LuaJIT's hooks do not fire in compiled loops: a script that has not stopped after a second is ended here. */
static void on_alarm(int number) {
    (void)number;
    int asked = signal_pending();
    if (asked && !atomic_load(&cooperative))
        _exit(128 + asked);
}

static void take(int number, void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

void signals_install(void (*stop)(void)) {
    struct sigaction old;
    main_thread = pthread_self();
    stop_main = stop;
    take(SIGINT, on_signal);
    take(SIGTERM, on_signal);
    take(SIGPIPE, on_signal);
    if (sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
        take(SIGHUP, on_signal);
    take(SIGALRM, on_alarm);
}
