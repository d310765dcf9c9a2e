/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * Assembly: the fragments of long messages, joined without Python.  The twin is Reassembler.add() in msgd/wire/dgram.py,
 * which has the rules.
 *
 * Both change the same objects, the Reassembler's, so a message may be begun by one and ended by the other.  A fragment
 * is plain if it begins or continues a message for which no other is abandoned, its first one has the whole header, and
 * it has what a fragment of that message must have.  If memory is short, the twin counts what is lost: a BytesIO that
 * cannot grow is closed, and what is written behind `length` is written again.
 */
#include "fragments.h"

#include <time.h>

#define DATAGRAM_MAX 1024

enum { COOKIE, DEADLINE, HEADER, HELD, LENGTH, RECEIVED, TOTAL, SLOTS };
enum { BYTES, UNFINISHED, REASSEMBLER_SLOTS };
enum { WRITE, GETVALUE, MOVE_TO_END, NAMES };

struct Assembly {
	PyObject_HEAD
	PyObject *reassembler;
	PyTypeObject *unfinished_class;
	PyTypeObject *bytes_io;
	PyObject *names[NAMES];
	Py_ssize_t slots[SLOTS];
	Py_ssize_t own_slots[REASSEMBLER_SLOTS];
	unsigned long long max_total;
	unsigned long long max_bytes;
	Py_ssize_t per_sender;
	double timeout;
	Py_ssize_t longest; /* data of a message that has been delivered */
};

/* What is in front of the bytes of a fragment. */
struct prefix {
	uint64_t cookie;
	uint64_t total;
	int32_t pid;
	int32_t number;
};

#define PREFIX_SIZE 24
_Static_assert(sizeof(struct prefix) == PREFIX_SIZE, "unpadded");

static uint64_t number_in(PyObject *object)
{
	uint64_t number = object && PyLong_Check(object) ? PyLong_AsUnsignedLongLong(object) : UINT64_MAX;

	if (number == UINT64_MAX)
		PyErr_Clear();
	return number;
}

static double seconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Write behind what is there.  Returns 0 if it cannot be done. */
static int write_data(const Assembly *self, PyObject *received, const char *data, size_t size)
{
	PyObject *view = PyMemoryView_FromMemory((char *)data, (Py_ssize_t)size, PyBUF_READ);
	PyObject *written = view ? PyObject_CallMethodOneArg(received, self->names[WRITE], view) : NULL;

	Py_XDECREF(view);
	Py_XDECREF(written);
	return written != NULL;
}

/* Whether the Reassembler may hold `wanted` bytes more without giving up anything; then `*bytes` is what it holds then. */
static int may_hold(const Assembly *self, size_t wanted, PyObject **bytes)
{
	uint64_t held = number_in(*slot(self->reassembler, self->own_slots[BYTES]));

	if (held > self->max_bytes || wanted > self->max_bytes - held)
		return 0;
	*bytes = PyLong_FromUnsignedLongLong(held + wanted);
	return *bytes != NULL;
}

static void set_bytes(const Assembly *self, PyObject *bytes)
{
	set_slot(self->reassembler, self->own_slots[BYTES], bytes);
}

/* A new _Unfinished for this first fragment; NULL if it cannot be made. */
static PyObject *new_unfinished(const Assembly *self, const struct prefix *prefix, const char *data, size_t size)
{
	PyObject *one = self->unfinished_class->tp_alloc(self->unfinished_class, 0);
	PyObject *values[SLOTS] = {
		[COOKIE] = PyLong_FromUnsignedLongLong(prefix->cookie),
		[DEADLINE] = PyFloat_FromDouble(seconds_now() + self->timeout),
		[HEADER] = PyBytes_FromStringAndSize(data, HEADER_SIZE),
		[HELD] = PyLong_FromSize_t(size),
		[LENGTH] = PyLong_FromSize_t(size),
		[RECEIVED] = PyObject_CallNoArgs((PyObject *)self->bytes_io),
		[TOTAL] = PyLong_FromUnsignedLongLong(prefix->total),
	};
	int done = one && values[RECEIVED] && write_data(self, values[RECEIVED], data + HEADER_SIZE, size - HEADER_SIZE);

	for (int i = 0; i < SLOTS; i++) {
		done = done && values[i];
		if (one)
			set_slot(one, self->slots[i], values[i]);
		else
			Py_XDECREF(values[i]);
	}
	if (!done)
		Py_CLEAR(one);
	return one;
}

/* Begin a message, if no other has to be given up for it.  Returns whether that is done. */
static int begin(const Assembly *self, PyObject *unfinished, PyObject *key, const struct prefix *prefix, const char *data,
		 size_t size)
{
	PyObject *bytes, *one;
	int done;

	if (size < HEADER_SIZE || size > DATAGRAM_MAX - PREFIX_SIZE || size >= prefix->total ||
	    PyObject_Size(unfinished) >= self->per_sender || !may_hold(self, size, &bytes))
		return 0;
	one = new_unfinished(self, prefix, data, size);
	done = one && !PyObject_SetItem(unfinished, key, one);
	Py_XDECREF(one);
	if (done)
		set_bytes(self, bytes);
	else
		Py_DECREF(bytes);
	return done;
}

/* Write a fragment in the middle of its message.  Returns whether that is done. */
static int go_on(const Assembly *self, PyObject *unfinished, PyObject *key, PyObject *one, const char *data, size_t size)
{
	size_t length = (size_t)number_in(*slot(one, self->slots[LENGTH])) + size;
	PyObject *bytes = NULL, *moved = NULL, *number = NULL, *deadline = NULL;
	int done = may_hold(self, size, &bytes) &&
		   (moved = PyObject_CallMethodOneArg(unfinished, self->names[MOVE_TO_END], key)) &&
		   (number = PyLong_FromSize_t(length)) &&
		   (deadline = PyFloat_FromDouble(seconds_now() + self->timeout)) &&
		   write_data(self, *slot(one, self->slots[RECEIVED]), data, size);

	Py_XDECREF(moved);
	if (done) {
		set_slot(one, self->slots[LENGTH], Py_NewRef(number));
		set_slot(one, self->slots[HELD], number);
		set_slot(one, self->slots[DEADLINE], deadline);
		set_bytes(self, bytes);
	} else {
		Py_XDECREF(number);
		Py_XDECREF(deadline);
		Py_XDECREF(bytes);
	}
	return done;
}

/* The message that its last fragment completes; NULL if it is not plain, or there is no memory. */
static PyObject *complete(const Assembly *self, Addresses *addresses, PyObject *one, uint64_t pid, const char *data,
			  size_t size)
{
	PyObject *received = *slot(one, self->slots[RECEIVED]), *value, *message;
	const char *header = PyBytes_AS_STRING(*slot(one, self->slots[HEADER]));
	struct route route;
	uint32_t type;

	memcpy(&route, header, sizeof(route));
	memcpy(&type, header + sizeof(route), sizeof(type));
	if (route.src.pid != pid || !write_data(self, received, data, size))
		return NULL;
	value = PyObject_CallMethodNoArgs(received, self->names[GETVALUE]);
	message = value ? new_message_of(addresses, &route, type, value) : NULL;
	Py_XDECREF(value);
	return message;
}

/* Complete a message and deliver it.  Returns whether that is done; -1 with an exception if it cannot be delivered. */
static int finish(Assembly *self, Addresses *addresses, PyObject *deliver, PyObject *key, PyObject *one, uint64_t pid,
		  const char *data, size_t size)
{
	PyObject *unfinished = *slot(self->reassembler, self->own_slots[UNFINISHED]), *delivered;
	uint64_t held = number_in(*slot(one, self->slots[HELD])), all = number_in(*slot(self->reassembler, self->own_slots[BYTES]));
	PyObject *message = all < held ? NULL : complete(self, addresses, one, pid, data, size);
	PyObject *bytes = message ? PyLong_FromUnsignedLongLong(all - held) : NULL;

	if (!bytes || PyObject_DelItem(unfinished, key)) {
		Py_XDECREF(message);
		Py_XDECREF(bytes);
		return 0;
	}
	set_bytes(self, bytes);
	if (PyBytes_GET_SIZE(PyTuple_GET_ITEM(message, 3)) > self->longest)
		self->longest = PyBytes_GET_SIZE(PyTuple_GET_ITEM(message, 3));
	delivered = PyObject_CallOneArg(deliver, message);
	Py_DECREF(message);
	Py_XDECREF(delivered);
	return delivered ? 1 : -1;
}

/* Whether a fragment with this prefix and size continues this message, and the message is plain. */
static int continues(const Assembly *self, PyObject *one, const struct prefix *prefix, size_t size)
{
	PyObject *header, *received, *deadline;
	uint64_t length;

	if (!Py_IS_TYPE(one, self->unfinished_class))
		return 0;
	header = *slot(one, self->slots[HEADER]);
	received = *slot(one, self->slots[RECEIVED]);
	deadline = *slot(one, self->slots[DEADLINE]);
	length = number_in(*slot(one, self->slots[LENGTH]));
	return header && PyBytes_CheckExact(header) && PyBytes_GET_SIZE(header) == HEADER_SIZE && received &&
	       Py_IS_TYPE(received, self->bytes_io) && deadline && PyFloat_Check(deadline) &&
	       PyFloat_AS_DOUBLE(deadline) >= seconds_now() &&
	       number_in(*slot(one, self->slots[COOKIE])) == prefix->cookie &&
	       number_in(*slot(one, self->slots[TOTAL])) == prefix->total &&
	       number_in(*slot(one, self->slots[HELD])) == length && length < prefix->total && size <= prefix->total - length;
}

int take_fragment(Assembly *self, Addresses *addresses, PyObject *deliver, uint64_t pid, const char *datagram, size_t length)
{
	PyObject *unfinished = *slot(self->reassembler, self->own_slots[UNFINISHED]), *key, *one;
	const char *data = datagram + PREFIX_SIZE;
	size_t size = length - PREFIX_SIZE;
	struct prefix prefix;
	int done = 0;

	if (length <= PREFIX_SIZE || !unfinished)
		return 0;
	memcpy(&prefix, datagram, PREFIX_SIZE);
	if (prefix.pid <= 0 || (uint64_t)prefix.pid != pid || prefix.total < HEADER_SIZE || prefix.total > self->max_total)
		return 0;
	key = Py_BuildValue("(ii)", (int)prefix.pid, (int)prefix.number);
	one = key ? PyObject_GetItem(unfinished, key) : NULL;
	if (key && !one && PyErr_ExceptionMatches(PyExc_KeyError)) {
		PyErr_Clear();
		done = begin(self, unfinished, key, &prefix, data, size);
	} else if (one && continues(self, one, &prefix, size)) {
		if (number_in(*slot(one, self->slots[LENGTH])) + size < prefix.total)
			done = go_on(self, unfinished, key, one, data, size);
		else
			done = finish(self, addresses, deliver, key, one, pid, data, size);
	}
	if (!done)
		PyErr_Clear(); /* nothing is changed that the twin does not change again */
	Py_XDECREF(key);
	Py_XDECREF(one);
	return done;
}

/* The type */

static int find(Py_ssize_t *offsets, PyObject *cls, const char *const *names)
{
	for (; *names; names++, offsets++) {
		*offsets = slot_offset(cls, *names);
		if (*offsets < 0)
			return -1;
	}
	return 0;
}

/* Assembly(reassembler, _Unfinished, BytesIO, max_total, max_bytes, per_sender, timeout) */
static PyObject *assembly_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static const char *const names[] = {"cookie", "deadline", "header", "held", "length", "received", "total", NULL};
	static const char *const own_names[] = {"_bytes", "unfinished", NULL};
	static const char *const methods[] = {"write", "getvalue", "move_to_end"};
	PyObject *reassembler, *unfinished_class, *bytes_io;
	unsigned long long max_total, max_bytes;
	Py_ssize_t per_sender;
	double timeout;
	Assembly *self;

	(void)kwargs;
	if (!PyArg_ParseTuple(args, "OO!O!KKnd:Assembly", &reassembler, &PyType_Type, &unfinished_class, &PyType_Type,
			      &bytes_io, &max_total, &max_bytes, &per_sender, &timeout))
		return NULL;
	self = (Assembly *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->reassembler = Py_NewRef(reassembler);
	self->unfinished_class = (PyTypeObject *)Py_NewRef(unfinished_class);
	self->bytes_io = (PyTypeObject *)Py_NewRef(bytes_io);
	self->max_total = max_total;
	self->max_bytes = max_bytes;
	self->per_sender = per_sender;
	self->timeout = timeout;
	for (int i = 0; i < NAMES; i++) {
		self->names[i] = PyUnicode_InternFromString(methods[i]);
		if (!self->names[i]) {
			Py_DECREF(self);
			return NULL;
		}
	}
	if (find(self->slots, unfinished_class, names) || find(self->own_slots, (PyObject *)Py_TYPE(reassembler), own_names))
		Py_CLEAR(self);
	return (PyObject *)self;
}

static void assembly_dealloc(Assembly *self)
{
	Py_XDECREF(self->reassembler);
	Py_XDECREF(self->unfinished_class);
	Py_XDECREF(self->bytes_io);
	for (int i = 0; i < NAMES; i++)
		Py_XDECREF(self->names[i]);
	Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMemberDef assembly_members[] = {
	{"longest", T_PYSSIZET, offsetof(Assembly, longest), READONLY, "the longest data of a message that it has delivered"},
	{NULL, 0, 0, 0, NULL},
};

PyTypeObject AssemblyType = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "msgd._native.Assembly",
	.tp_doc = "The compiled twin of a Reassembler's add(), for plain fragments.",
	.tp_basicsize = sizeof(Assembly),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = assembly_new,
	.tp_dealloc = (destructor)assembly_dealloc,
	.tp_members = assembly_members,
};
