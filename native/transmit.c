/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * How a plain message leaves: as a datagram, or as a frame that is written or gathered.  The twins are
 * DgramBackend.send() and stream's Outgoing.send(), which say why each condition is there.
 */
#include "sending.h"

#include <errno.h>
#include <sys/socket.h>
#include <time.h>

#define COOKIE_SIZE 8
#define DATAGRAM_MAX 1024
#define DATAGRAM_DATA_MAX (DATAGRAM_MAX - COOKIE_SIZE - HEADER_SIZE)
#define FRAME_START 12
#define FRAME_SIZE (FRAME_START + HEADER_SIZE)
#define COPIED_MAX 4096

static PyObject *decline(void)
{
	PyErr_Clear();
	return Py_NewRef(Py_None);
}

/* Write the header, and the data behind it. */
static void pack(char *place, const struct outgoing *message)
{
	memcpy(place, &message->route, sizeof(message->route));
	memcpy(place + sizeof(message->route), &message->type, sizeof(message->type));
	memcpy(place + HEADER_SIZE, message->data, (size_t)message->length);
}

/* The value of an int in a slot; -1 if it is none, or negative. */
static long slot_number(const Sender *self, PyObject *instance, int number)
{
	PyObject *object = value(self, instance, number);
	long result = object && PyLong_Check(object) ? PyLong_AsLong(object) : -1;

	if (result < 0)
		PyErr_Clear();
	return result;
}

/* dgram */

enum { D_UNIQUE_ID, D_SOCKET, D_QUEUE, D_MESSAGES };
enum { D_CLASS, D_QUEUE_CLASS, D_FILENO };

static PyObject *transmit_datagram(Sender *self, const struct outgoing *message)
{
	PyObject *destination = find_destination(self, message, self->objects[D_CLASS], D_UNIQUE_ID);
	PyObject *queue = destination ? value(self, destination, D_QUEUE) : NULL, *waiting, *socket, *fileno;
	char datagram[DATAGRAM_MAX];
	ssize_t size = COOKIE_SIZE + HEADER_SIZE + message->length;
	long fd;

	if (!queue || (PyObject *)Py_TYPE(queue) != self->objects[D_QUEUE_CLASS])
		return decline();
	waiting = value(self, queue, D_MESSAGES);
	socket = value(self, destination, D_SOCKET);
	if (!waiting || !socket || PyObject_Size(waiting) != 0)
		return decline();
	fileno = PyObject_CallMethodNoArgs(socket, self->objects[D_FILENO]);
	fd = fileno && PyLong_Check(fileno) ? PyLong_AsLong(fileno) : -1;
	Py_XDECREF(fileno);
	if (fd < 0)
		return decline();
	memset(datagram, 0, COOKIE_SIZE);
	pack(datagram + COOKIE_SIZE, message);
	if (send((int)fd, datagram, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL) != size)
		return decline(); /* the twin finds out why, and what to do */
	return Py_NewRef(self->sent);
}

/* datagram_sender(lock, ServerID, table, SENT, Destination, OutQueue, longest) */
PyObject *datagram_sender(PyObject *module, PyObject *args)
{
	static const char *const names[] = {"unique_id", "socket", "queue", NULL};
	static const char *const queue_names[] = {"messages", NULL};
	PyObject *lock, *server_id, *table, *sent, *destination, *queue;
	Py_ssize_t most;
	Sender *self;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOOOOOn", &lock, &server_id, &table, &sent, &destination, &queue, &most))
		return NULL;
	self = new_sender(transmit_datagram, lock, server_id, table, sent, sent, DATAGRAM_DATA_MAX, most);
	if (!self)
		return NULL;
	self->objects[D_CLASS] = Py_NewRef(destination);
	self->objects[D_QUEUE_CLASS] = Py_NewRef(queue);
	self->objects[D_FILENO] = PyUnicode_InternFromString("fileno");
	if (!self->objects[D_FILENO] || find_slots(self, D_UNIQUE_ID, destination, names) ||
	    find_slots(self, D_MESSAGES, queue, queue_names))
		Py_CLEAR(self);
	return (PyObject *)self;
}

/* stream */

enum { P_UNIQUE_ID, P_CONNECTION, P_GATHERED, P_GATHERED_BYTES, C_FD, C_BEGUN, C_ENDED, C_LAST_USED, O_DEPTH, O_GATHERER,
       O_GATHER_BYTES, O_GATHER_MESSAGES, O_GATHERING, O_FIRST_AT_ONCE, O_ROUND, P_WRITTEN_IN };
enum { S_PEER_CLASS, S_CONNECTION_CLASS, S_OUTGOING, S_BLOCKED };

static PyObject *new_frame(const struct outgoing *message)
{
	static const unsigned char start[8] = {'m', 's', 'g', 'd', 1, 2, 0, 0};
	PyObject *frame = PyBytes_FromStringAndSize(NULL, FRAME_SIZE + message->length);
	uint32_t length = (uint32_t)(HEADER_SIZE + message->length);

	if (frame) {
		memcpy(PyBytes_AS_STRING(frame), start, sizeof(start));
		memcpy(PyBytes_AS_STRING(frame) + sizeof(start), &length, sizeof(length));
		pack(PyBytes_AS_STRING(frame) + FRAME_START, message);
	}
	return frame;
}

static void note_use(Sender *self, PyObject *connection)
{
	struct timespec now;
	PyObject *seconds;

	clock_gettime(CLOCK_MONOTONIC, &now);
	seconds = PyFloat_FromDouble((double)now.tv_sec + (double)now.tv_nsec * 1e-9);
	if (seconds)
		set_slot(connection, self->slots[C_LAST_USED], seconds);
	else
		PyErr_Clear();
}

/* The first message for this peer: check that it still reads, and note that something is gathered for it.  0 if so. */
static int begin_to_gather(Sender *self, PyObject *peer, PyObject *connection)
{
	PyObject *gathering = value(self, self->objects[S_OUTGOING], O_GATHERING);
	long fd = slot_number(self, connection, C_FD);

	if (fd < 0 || !gathering || !PyList_Check(gathering) || send((int)fd, "", 0, MSG_DONTWAIT | MSG_NOSIGNAL))
		return -1;
	note_use(self, connection);
	return PyList_Append(gathering, peer);
}

/* Gather behind what this thread's handlers have sent before; the one that makes it too much is the twin's. */
static PyObject *gather(Sender *self, PyObject *peer, PyObject *connection, PyObject *gathered,
			const struct outgoing *message)
{
	PyObject *outgoing = self->objects[S_OUTGOING], *frame, *after;
	long bytes = slot_number(self, peer, P_GATHERED_BYTES);
	long limit = slot_number(self, outgoing, O_GATHER_BYTES);
	long most = slot_number(self, outgoing, O_GATHER_MESSAGES);
	PyObject *gatherer = value(self, outgoing, O_GATHERER);

	if (!gatherer || !PyLong_Check(gatherer) || PyLong_AsUnsignedLong(gatherer) != PyThread_get_thread_ident())
		return decline();
	if (bytes < 0 || PyList_GET_SIZE(gathered) + 1 >= most || bytes + FRAME_SIZE + message->length >= limit)
		return decline();
	if (!PyList_GET_SIZE(gathered) && begin_to_gather(self, peer, connection))
		return decline();
	frame = new_frame(message);
	after = frame ? PyLong_FromLong(bytes + FRAME_SIZE + (long)message->length) : NULL;
	if (!after || PyList_Append(gathered, frame)) {
		Py_XDECREF(frame);
		Py_XDECREF(after);
		return NULL;
	}
	Py_DECREF(frame);
	set_slot(peer, self->slots[P_GATHERED_BYTES], after);
	return Py_NewRef(self->queued);
}

/* Write the frame.  If the socket takes a part of it, the twin's queue_rest() queues the rest. */
static PyObject *write_frame(Sender *self, PyObject *peer, PyObject *connection, const struct outgoing *message)
{
	long fd = slot_number(self, connection, C_FD);
	PyObject *frame = fd < 0 ? NULL : new_frame(message), *status;
	ssize_t written;

	if (!frame)
		return decline();
	written = send((int)fd, PyBytes_AS_STRING(frame), (size_t)PyBytes_GET_SIZE(frame), MSG_DONTWAIT | MSG_NOSIGNAL);
	if (written <= 0) {
		Py_DECREF(frame);
		return decline(); /* the twin finds out why, and what to do */
	}
	note_use(self, connection);
	if (written == PyBytes_GET_SIZE(frame))
		status = Py_NewRef(self->sent);
	else
		status = PyObject_CallMethod(self->objects[S_OUTGOING], "queue_rest", "OOOOn", peer, message->dst_object,
					     message->type_object, frame, (Py_ssize_t)written);
	Py_DECREF(frame);
	return status;
}

/* Whether this is the first message for the peer, in a round with few: then it is written at once. */
static int is_first_of_few(Sender *self, PyObject *peer)
{
	PyObject *outgoing = self->objects[S_OUTGOING], *gatherer = value(self, outgoing, O_GATHERER);

	return value(self, outgoing, O_FIRST_AT_ONCE) == Py_True && value(self, outgoing, O_ROUND) &&
	       slot_number(self, peer, P_WRITTEN_IN) != slot_number(self, outgoing, O_ROUND) && gatherer &&
	       PyLong_Check(gatherer) && PyLong_AsUnsignedLong(gatherer) == PyThread_get_thread_ident();
}

static PyObject *transmit_frame(Sender *self, const struct outgoing *message)
{
	PyObject *peer = find_destination(self, message, self->objects[S_PEER_CLASS], P_UNIQUE_ID);
	PyObject *gathered = peer ? value(self, peer, P_GATHERED) : NULL, *connection, *status;
	int blocked;
	long depth;

	if (!gathered || !PyList_Check(gathered))
		return decline();
	blocked = PyDict_Contains(self->objects[S_BLOCKED], PyTuple_GET_ITEM(message->dst_object, 0));
	connection = value(self, peer, P_CONNECTION);
	if (blocked || !connection || (PyObject *)Py_TYPE(connection) != self->objects[S_CONNECTION_CLASS] ||
	    value(self, connection, C_BEGUN) != Py_True || value(self, connection, C_ENDED) != Py_False)
		return decline();
	depth = slot_number(self, self->objects[S_OUTGOING], O_DEPTH);
	if (depth > 0 && !is_first_of_few(self, peer))
		return gather(self, peer, connection, gathered, message);
	if (depth < 0 || PyList_GET_SIZE(gathered))
		return decline();
	status = write_frame(self, peer, connection, message);
	if (depth && status && status != Py_None)
		set_slot(peer, self->slots[P_WRITTEN_IN], Py_NewRef(value(self, self->objects[S_OUTGOING], O_ROUND)));
	return status;
}

/* frame_sender(lock, ServerID, table, SENT, QUEUED, Peer, Connection, outgoing, blocked, longest) */
PyObject *frame_sender(PyObject *module, PyObject *args)
{
	static const char *const peer_names[] = {"unique_id", "connection", "gathered", "gathered_bytes", NULL};
	static const char *const connection_names[] = {"fd", "_begun", "ended", "last_used", NULL};
	static const char *const outgoing_names[] = {"_depth", "_gatherer", "_gather_bytes", "_gather_messages",
						   "gathering", "_first_at_once", "_round", NULL};
	static const char *const written_names[] = {"written_in", NULL};
	PyObject *lock, *server_id, *table, *sent, *queued, *peer, *connection, *outgoing, *blocked;
	Py_ssize_t most;
	Sender *self;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOOOOOOOO!n", &lock, &server_id, &table, &sent, &queued, &peer, &connection, &outgoing,
			      &PyDict_Type, &blocked, &most))
		return NULL;
	self = new_sender(transmit_frame, lock, server_id, table, sent, queued, COPIED_MAX - FRAME_SIZE, most);
	if (!self)
		return NULL;
	self->objects[S_PEER_CLASS] = Py_NewRef(peer);
	self->objects[S_CONNECTION_CLASS] = Py_NewRef(connection);
	self->objects[S_OUTGOING] = Py_NewRef(outgoing);
	self->objects[S_BLOCKED] = Py_NewRef(blocked);
	if (find_slots(self, P_UNIQUE_ID, peer, peer_names) || find_slots(self, C_FD, connection, connection_names) ||
	    find_slots(self, O_DEPTH, (PyObject *)Py_TYPE(outgoing), outgoing_names) ||
	    find_slots(self, P_WRITTEN_IN, peer, written_names))
		Py_CLEAR(self);
	return (PyObject *)self;
}
