/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * Sender: the plain sends of one endpoint, in one call.  sending.c has what all transports share; each transport has one
 * function that transmits.
 */
#ifndef MSGD_SENDING_H
#define MSGD_SENDING_H

#include "native.h"

#define SENDER_SLOTS 24
#define SENDER_OBJECTS 6

struct outgoing {
	PyObject *dst_object;
	PyObject *type_object;
	PyObject *data_object;
	struct route route;
	uint32_t type;
	const char *data;
	Py_ssize_t length;
};

typedef struct Sender Sender;

/* Send it.  Returns a new reference to a SendStatus; None if it is not plain; NULL with an exception. */
typedef PyObject *transmit_function(Sender *self, const struct outgoing *message);

struct Sender {
	PyObject_HEAD
	vectorcallfunc vectorcall;
	transmit_function *transmit;
	PyObject *acquire;	/* of the endpoint's lock */
	PyObject *release;
	PyTypeObject *server_id_class;
	PyObject *table;	/* the known destinations, by pid */
	PyObject *sent;		/* SendStatus.SENT */
	PyObject *queued;	/* SendStatus.QUEUED */
	PyObject *objects[SENDER_OBJECTS];
	Py_ssize_t slots[SENDER_SLOTS];
	unsigned int node;	/* this node's number in its cluster; NONCLUSTER_VNN if it has none */
	Py_ssize_t longest;	/* data that is plain, in bytes */
	PyObject *last_dst;	/* the addresses that `last` holds packed */
	PyObject *last_src;
	struct route last;
	unsigned long long sent_messages;
	unsigned long long sent_bytes;
};

extern PyTypeObject SenderType;

PyObject *datagram_sender(PyObject *module, PyObject *args);
PyObject *frame_sender(PyObject *module, PyObject *args);
PyObject *record_sender(PyObject *module, PyObject *args);

Sender *new_sender(transmit_function *transmit, PyObject *lock, PyObject *server_id_class,
		   PyObject *table, PyObject *sent, PyObject *queued, Py_ssize_t longest, Py_ssize_t most);

/* Find the offsets of a class's slots, from `first` on; -1 with an exception. */
int find_slots(Sender *self, int first, PyObject *cls, const char *const *names);

/* The destination in the table, borrowed, if it is an instance of the class that the message is for; NULL otherwise. */
PyObject *find_destination(Sender *self, const struct outgoing *message, PyObject *cls, int unique_id_slot);

/* The value of a slot, borrowed; NULL if it is empty. */
static inline PyObject *value(const Sender *self, PyObject *instance, int number)
{
	return *slot(instance, self->slots[number]);
}

#endif
