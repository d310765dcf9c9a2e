/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * tdb: how a plain message is appended to a record.  The twins are TdbBackend.send(), tdb's Outgoing.append() and
 * Destination, which say why each condition is there.
 *
 * It is plain while the quota lasts, and the destination is known to live.  The words that the destination shares are
 * mapped, and change at any time: each is read once, in one step.
 */
#include "sending.h"

#include <fcntl.h>
#include <time.h>

#define RECORD_HEAD 24
#define IDS_SIZE 24
#define LONGEST 4096

enum { EPOCH, TAKING, WORDS_READ };
#define AWAKE 0
#define CLOSED UINT64_MAX

#define TRUST_ALIVE 20e-6
#define SPINS 200

enum { O_DESTINATION, O_OPEN_KEY, O_QUOTA, O_UNCHECKED, O_UNCHECKED_BYTES, D_UNIQUE_ID, D_WORDS, D_SIGNALLED, D_SEEN_ALIVE,
       D_LOCK_FD, D_PID };
enum { T_OUTGOING_CLASS, T_DESTINATION_CLASS, T_APPEND, T_WAKE_UP };

static PyObject *decline(void)
{
	PyErr_Clear();
	return Py_NewRef(Py_None);
}

static int64_t slot_number(const Sender *self, PyObject *instance, int number)
{
	PyObject *object = value(self, instance, number);
	int64_t result = object && PyLong_Check(object) ? PyLong_AsLongLong(object) : -1;

	if (result == -1)
		PyErr_Clear();
	return result;
}

static int set_number(const Sender *self, PyObject *instance, int number, int64_t to)
{
	PyObject *object = PyLong_FromLongLong(to);

	if (!object)
		return -1;
	set_slot(instance, self->slots[number], object);
	return 0;
}

/* The message's records.  Native order is little-endian here. */
static PyObject *new_record(const struct outgoing *message)
{
	int32_t ids_head[4] = {2, 0, (int32_t)message->route.dst.pid, (int32_t)message->route.src.pid};
	int32_t head[4] = {1, (int32_t)message->type, ids_head[2], ids_head[3]};
	uint64_t ids_length = IDS_SIZE, length = (uint64_t)message->length;
	uint32_t tasks[2] = {message->route.dst.task_id, message->route.src.task_id};
	uint64_t unique_ids[2] = {message->route.dst.unique_id, message->route.src.unique_id};
	PyObject *record = PyBytes_FromStringAndSize(NULL, 2 * RECORD_HEAD + IDS_SIZE + message->length);
	char *place;

	if (!record)
		return NULL;
	place = PyBytes_AS_STRING(record);
	memcpy(place, ids_head, sizeof(ids_head));
	memcpy(place + 16, &ids_length, sizeof(ids_length));
	memcpy(place + 24, tasks, sizeof(tasks));
	memcpy(place + 32, unique_ids, sizeof(unique_ids));
	memcpy(place + 48, head, sizeof(head));
	memcpy(place + 64, &length, sizeof(length));
	memcpy(place + 72, message->data, (size_t)message->length);
	return record;
}

/* Whether the record is one with ids, and all fits its fields. */
static int is_plain(const struct outgoing *message)
{
	const struct address *dst = &message->route.dst, *src = &message->route.src;

	if (message->type > INT32_MAX || dst->pid > INT32_MAX || src->pid > INT32_MAX || !dst->pid || !src->pid)
		return 0;
	return dst->task_id || src->task_id ||
	       (dst->unique_id != UNIQUE_ID_UNKNOWN && dst->unique_id != UNIQUE_ID_NOT_TO_VERIFY);
}

/* Whether the destination has been seen alive lately, or its lock file is locked now; Destination.is_alive(). */
static int is_alive(Sender *self, PyObject *destination)
{
	PyObject *seen = value(self, destination, D_SEEN_ALIVE), *object;
	int64_t fd = slot_number(self, destination, D_LOCK_FD), pid = slot_number(self, destination, D_PID);
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET}; /* a write lock alone is in its way */
	struct timespec now;
	double seconds;

	if (!seen || !PyFloat_Check(seen) || pid <= 0)
		return 0;
	clock_gettime(CLOCK_MONOTONIC, &now);
	seconds = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
	if (seconds - PyFloat_AS_DOUBLE(seen) <= TRUST_ALIVE)
		return 1;
	if (fd >= 0 && (fcntl((int)fd, F_GETLK, &lock) || lock.l_type == F_UNLCK || lock.l_pid != pid))
		return 0;
	object = PyFloat_FromDouble(seconds);
	if (!object)
		return 0;
	set_slot(destination, self->slots[D_SEEN_ALIVE], object);
	return 1;
}

static uint64_t read_word(const Py_buffer *words, int number)
{
	return __atomic_load_n((const uint64_t *)words->buf + number, __ATOMIC_SEQ_CST);
}

static inline void relax(void)
{
#ifdef __x86_64__
	__builtin_ia32_pause();
#endif
}

/* Spin for a moment while the receiver empties the record: it says so. */
static void spin_while_taking(const Py_buffer *words)
{
	for (int i = 0; i < SPINS && read_word(words, TAKING); i++)
		relax();
}

static PyObject *append(Sender *self, PyObject *outgoing, PyObject *destination, const Py_buffer *words,
			PyObject *record)
{
	int64_t unchecked = slot_number(self, outgoing, O_UNCHECKED);
	int64_t bytes = slot_number(self, outgoing, O_UNCHECKED_BYTES) + PyBytes_GET_SIZE(record);
	PyObject *key = value(self, outgoing, O_OPEN_KEY), *done, *signalled;
	uint64_t epoch;

	if (!key || unchecked < 0 || bytes > slot_number(self, outgoing, O_QUOTA))
		return decline();
	if (set_number(self, outgoing, O_UNCHECKED, unchecked + 1) || set_number(self, outgoing, O_UNCHECKED_BYTES, bytes))
		return NULL;
	spin_while_taking(words);
	done = PyObject_CallFunctionObjArgs(self->objects[T_APPEND], key, record, NULL);
	if (!done)
		return decline(); /* the twin finds out why, and repairs; it counts the message twice, which does no harm */
	Py_DECREF(done);
	epoch = read_word(words, EPOCH);
	signalled = value(self, destination, D_SIGNALLED);
	if (epoch == AWAKE || epoch == CLOSED ||
	    (signalled && PyLong_Check(signalled) && PyLong_AsUnsignedLongLong(signalled) == epoch))
		return Py_NewRef(self->sent);
	done = PyObject_CallOneArg(self->objects[T_WAKE_UP], destination);
	Py_XDECREF(done);
	return done ? Py_NewRef(self->sent) : NULL;
}

static PyObject *transmit_record(Sender *self, const struct outgoing *message)
{
	PyObject *outgoing = PyDict_GetItemWithError(self->table, PyTuple_GET_ITEM(message->dst_object, 0));
	PyObject *destination, *words_object, *unique_id, *record, *status = NULL;
	Py_buffer words;

	if (!outgoing || (PyObject *)Py_TYPE(outgoing) != self->objects[T_OUTGOING_CLASS] || !is_plain(message))
		return decline();
	destination = value(self, outgoing, O_DESTINATION);
	if (!destination || (PyObject *)Py_TYPE(destination) != self->objects[T_DESTINATION_CLASS])
		return decline();
	unique_id = value(self, destination, D_UNIQUE_ID);
	if (message->route.dst.unique_id != UNIQUE_ID_UNKNOWN && message->route.dst.unique_id != UNIQUE_ID_NOT_TO_VERIFY &&
	    (!unique_id || !PyLong_Check(unique_id) || PyLong_AsUnsignedLongLong(unique_id) != message->route.dst.unique_id))
		return decline();
	words_object = value(self, destination, D_WORDS);
	if (!words_object || PyObject_GetBuffer(words_object, &words, PyBUF_SIMPLE))
		return decline();
	if (words.len >= (Py_ssize_t)(WORDS_READ * sizeof(uint64_t)) && (uintptr_t)words.buf % sizeof(uint64_t) == 0 &&
	    read_word(&words, EPOCH) != CLOSED && is_alive(self, destination)) {
		record = new_record(message);
		if (record)
			status = append(self, outgoing, destination, &words, record);
		Py_XDECREF(record);
	} else {
		status = decline();
	}
	PyBuffer_Release(&words);
	return status;
}

/* record_sender(lock, ServerID, table, SENT, Outgoing, Destination, append, wake_up, longest) */
PyObject *record_sender(PyObject *module, PyObject *args)
{
	static const char *const names[] = {"destination", "open_key", "quota", "unchecked", "unchecked_bytes", NULL};
	static const char *const destination_names[] = {"unique_id", "words", "signalled_epoch", "_seen_alive", "_lock_fd",
							"pid", NULL};
	PyObject *lock, *server_id, *table, *sent, *outgoing, *destination, *append_function, *wake_up;
	Py_ssize_t longest;
	Sender *self;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOOOOOOOn", &lock, &server_id, &table, &sent, &outgoing, &destination, &append_function,
			      &wake_up, &longest))
		return NULL;
	self = new_sender(transmit_record, lock, server_id, table, sent, sent, LONGEST, longest);
	if (!self)
		return NULL;
	self->objects[T_OUTGOING_CLASS] = Py_NewRef(outgoing);
	self->objects[T_DESTINATION_CLASS] = Py_NewRef(destination);
	self->objects[T_APPEND] = Py_NewRef(append_function);
	self->objects[T_WAKE_UP] = Py_NewRef(wake_up);
	if (find_slots(self, O_DESTINATION, outgoing, names) || find_slots(self, D_UNIQUE_ID, destination, destination_names))
		Py_CLEAR(self);
	return (PyObject *)self;
}
