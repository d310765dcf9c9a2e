/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
#ifndef MSGD_FRAGMENTS_H
#define MSGD_FRAGMENTS_H

#include "native.h"

typedef struct Assembly Assembly;

extern PyTypeObject AssemblyType;

/*
 * Take a fragment that came without descriptors from `pid`, whose credentials have been checked; deliver the message that
 * it completes.  Returns 1 if that is done, 0 if it is not plain and nothing has happened, -1 with an exception if the
 * message was complete and could not be delivered.
 */
int take_fragment(Assembly *self, Addresses *addresses, PyObject *deliver, uint64_t pid, const char *datagram, size_t length);

#endif
