/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * Library: messages.tdb, and libtdb's functions for it.  They are called by the addresses that chain_lock.py has found,
 * since the Python module lacks the lock of a chain, and costs more than the lock itself.  It is closed together with the
 * file: those who use it decline from then on.
 *
 * OwnRecord: the record from which this process takes its messages, looked at and emptied in one call.  The twins are
 * Inbox.has_messages() and Inbox.take(); inbox.py has the rules.
 *
 * The value is copied and the record emptied under the lock of the chain; Messages are made without it.  The record is
 * left as it is unless all of it is plain.
 *
 * Rejected: to look at the record's length in the mapped file without the lock, which would be a load of one word.  Another
 * process may make the file shorter at that moment (messages_file.py, rule 3), and the look would be a SIGBUS.
 */
#include "records.h"

#include <time.h>

#define TAKING 1 /* backends/tdb/words.py */
#define ROOM 40960 /* backends/tdb/messages_file.py */
#define POLL_INTERVAL 400 /* nanoseconds between two polls: more often, and they would get into the senders' way */
#define TDB_REPLACE 1

typedef struct {
	PyObject_HEAD
	Library *library;
	Addresses *addresses;
	PyObject *key;
	PyObject *words;
	int32_t pid;
	Py_ssize_t longest; /* of a value that is plain */
	Py_ssize_t lost;
} OwnRecord;

/* The value of the record; the GIL is held as long as anything is in it. */
static char value_buffer[ROOM];

/* Library */

static int set_addresses(Library *self, PyObject *addresses)
{
	void *found[6];

	_Static_assert(sizeof(Library) == sizeof(PyObject) + sizeof(found), "the rest are pointers");
	if (!PyTuple_Check(addresses) || PyTuple_GET_SIZE(addresses) != 6) {
		PyErr_SetString(PyExc_TypeError, "the addresses of libtdb's handle and of five functions");
		return -1;
	}
	for (int i = 0; i < 6; i++) {
		found[i] = PyLong_AsVoidPtr(PyTuple_GET_ITEM(addresses, i));
		if (!found[i]) {
			if (!PyErr_Occurred())
				PyErr_SetString(PyExc_ValueError, "an address is 0");
			return -1;
		}
	}
	memcpy(&self->handle, found, sizeof(found));
	return 0;
}

static PyObject *library_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	PyObject *addresses;
	Library *self;

	(void)kwargs;
	if (!PyArg_ParseTuple(args, "O!:Library", &PyTuple_Type, &addresses))
		return NULL;
	self = (Library *)type->tp_alloc(type, 0);
	if (self && set_addresses(self, addresses))
		Py_CLEAR(self);
	return (PyObject *)self;
}

static PyObject *library_open(Library *self, PyObject *addresses)
{
	if (set_addresses(self, addresses))
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *library_close(Library *self, PyObject *Py_UNUSED(ignored))
{
	self->handle = NULL;
	Py_RETURN_NONE;
}

static PyMethodDef library_methods[] = {
	{"open", (PyCFunction)library_open, METH_O, "open(addresses): use another file from now on."},
	{"close", (PyCFunction)library_close, METH_NOARGS, "close(): to be called before the file is closed."},
	{NULL, NULL, 0, NULL},
};

PyTypeObject LibraryType = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "msgd._native.Library",
	.tp_doc = "Library(addresses): libtdb's handle of an open file and the functions that chain_lock.py names.",
	.tp_basicsize = sizeof(Library),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = library_new,
	.tp_methods = library_methods,
};

/* OwnRecord */

struct found {
	size_t size;
	char *copy; /* where it is copied to, NULL if nowhere */
};

static int note_found(TDB_DATA key, TDB_DATA data, void *private_data)
{
	struct found *found = private_data;

	(void)key;
	found->size = data.dsize;
	if (found->copy && data.dsize <= ROOM)
		memcpy(found->copy, data.dptr, data.dsize);
	return 0;
}

static void pause_until(struct timespec *next)
{
	struct timespec now;

	do {
#ifdef __x86_64__
		__builtin_ia32_pause();
#endif
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec < next->tv_sec || (now.tv_sec == next->tv_sec && now.tv_nsec < next->tv_nsec));
	*next = now;
	next->tv_nsec += POLL_INTERVAL;
	if (next->tv_nsec >= 1000000000) {
		next->tv_nsec -= 1000000000;
		next->tv_sec++;
	}
}

/*
 * poll(times) -> at which look at the record there was something in it; 0 if there was nothing; None if libtdb has failed
 */
static PyObject *poll(OwnRecord *self, PyObject *times)
{
	const Library *library = self->library;
	Py_ssize_t most = PyLong_AsSsize_t(times);
	struct timespec next = {0, 0};
	struct found found = {0, NULL};

	if (most < 0 && PyErr_Occurred())
		return NULL;
	if (!library->handle)
		Py_RETURN_NONE;
	for (Py_ssize_t looks = 1; looks <= most; looks++) {
		if (looks > 1)
			pause_until(&next);
		if (library->parse_record(library->handle, datum(self->key), note_found, &found))
			Py_RETURN_NONE;
		if (found.size)
			return PyLong_FromSsize_t(looks);
	}
	return PyLong_FromLong(0);
}

/* Copy the value and empty the record, if all of it is plain.  Returns its size, -1 if it is not plain. */
static Py_ssize_t take_value(OwnRecord *self)
{
	const Library *library = self->library;
	TDB_DATA key = datum(self->key), nothing = {(unsigned char *)"", 0};
	struct found found = {0, value_buffer}, left = {0, NULL};
	Py_ssize_t result = -1;

	if (library->lock(library->handle, key))
		return -1;
	if (!library->parse_record(library->handle, key, note_found, &found) && found.size <= (size_t)self->longest &&
	    are_plain(value_buffer, (Py_ssize_t)found.size, self->pid)) {
		result = (Py_ssize_t)found.size;
		if (result && library->store(library->handle, key, nothing, TDB_REPLACE) &&
		    (library->parse_record(library->handle, key, note_found, &left) || left.size))
			result = -1;
	}
	library->unlock(library->handle, key);
	return result;
}

/* Pass on the messages in the buffer.  Returns the source of the last one, a new reference; NULL with an exception. */
static PyObject *deliver_value(OwnRecord *self, Py_ssize_t size, PyObject *deliver)
{
	PyObject *source = Py_NewRef(Py_False);
	Py_ssize_t position = 0;

	while (position < size) {
		PyObject *message = next_plain(self->addresses, value_buffer, size, self->pid, &position);
		PyObject *done = message ? PyObject_CallOneArg(deliver, message) : NULL;

		if (done)
			Py_SETREF(source, Py_NewRef(PyTuple_GET_ITEM(message, 1)));
		Py_XDECREF(message);
		Py_XDECREF(done);
		if (done)
			continue;
		if (!PyErr_ExceptionMatches(PyExc_MemoryError)) {
			Py_DECREF(source);
			return NULL;
		}
		PyErr_Clear();
		self->lost++;
	}
	return source;
}

/* Take what is in the record until there is nothing, so many times at most.  See take(). */
static PyObject *take_values(OwnRecord *self, uint64_t *taking, PyObject *deliver, long times)
{
	PyObject *source = Py_NewRef(Py_False);

	while (source && times-- > 0) {
		Py_ssize_t size;

		__atomic_store_n(taking, 1, __ATOMIC_SEQ_CST);
		size = take_value(self);
		__atomic_store_n(taking, 0, __ATOMIC_SEQ_CST);
		if (size <= 0) {
			if (size < 0)
				Py_SETREF(source, Py_NewRef(Py_None));
			break;
		}
		Py_SETREF(source, deliver_value(self, size, deliver));
	}
	return source;
}

/*
 * take(deliver, times) -> the source of the last message; False if there was none; None if what is there is not plain
 *
 * Takes what is in the record until there is nothing, so many times at most.  `deliver` is a builtin.  Messages for which
 * there was no memory are counted in `lost`.
 */
static PyObject *take(OwnRecord *self, PyObject *const *args, Py_ssize_t count)
{
	Py_buffer words;
	PyObject *source;
	long times;

	if (count != 2) {
		PyErr_SetString(PyExc_TypeError, "take(deliver, times)");
		return NULL;
	}
	times = PyLong_AsLong(args[1]);
	if (times == -1 && PyErr_Occurred())
		return NULL;
	if (!PyCFunction_Check(args[0]) || !self->library->handle)
		Py_RETURN_NONE;
	if (PyObject_GetBuffer(self->words, &words, PyBUF_WRITABLE)) {
		PyErr_Clear();
		Py_RETURN_NONE;
	}
	if (words.len < (Py_ssize_t)((TAKING + 1) * sizeof(uint64_t)) || (uintptr_t)words.buf % sizeof(uint64_t))
		source = Py_NewRef(Py_None);
	else
		source = take_values(self, (uint64_t *)words.buf + TAKING, args[0], times);
	PyBuffer_Release(&words);
	return source;
}

/* OwnRecord(library, addresses, key, words, pid, longest) */
static PyObject *own_record_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	PyObject *library, *addresses, *key, *words;
	Py_ssize_t longest;
	OwnRecord *self;
	int pid;

	(void)kwargs;
	if (!PyArg_ParseTuple(args, "O!O!O!Oin:OwnRecord", &LibraryType, &library, &AddressesType, &addresses, &PyBytes_Type,
			      &key, &words, &pid, &longest))
		return NULL;
	if (longest > ROOM || pid <= 0) {
		PyErr_SetString(PyExc_ValueError, "the longest value exceeds the room of a record, or the pid is none");
		return NULL;
	}
	self = (OwnRecord *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->library = (Library *)Py_NewRef(library);
	self->addresses = (Addresses *)Py_NewRef(addresses);
	self->key = Py_NewRef(key);
	self->words = Py_NewRef(words);
	self->pid = pid;
	self->longest = longest;
	return (PyObject *)self;
}

static void own_record_dealloc(OwnRecord *self)
{
	Py_XDECREF(self->library);
	Py_XDECREF(self->addresses);
	Py_XDECREF(self->key);
	Py_XDECREF(self->words);
	Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMemberDef own_record_members[] = {
	{"lost", T_PYSSIZET, offsetof(OwnRecord, lost), 0, "messages for which there was no memory"},
	{NULL, 0, 0, 0, NULL},
};

static PyMethodDef own_record_methods[] = {
	{"poll", (PyCFunction)poll, METH_O, "poll(times): at which look there was something, or 0; None if libtdb has failed."},
	{"take", (PyCFunction)(void (*)(void))take, METH_FASTCALL,
	 "take(deliver, times): the source of the last message, False, or None if not plain."},
	{NULL, NULL, 0, NULL},
};

PyTypeObject OwnRecordType = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "msgd._native.OwnRecord",
	.tp_doc = "The record from which this process takes its messages.",
	.tp_basicsize = sizeof(OwnRecord),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = own_record_new,
	.tp_dealloc = (destructor)own_record_dealloc,
	.tp_members = own_record_members,
	.tp_methods = own_record_methods,
};
