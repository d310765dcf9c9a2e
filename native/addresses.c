/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * Addresses: from the bytes of a header to ServerIDs and Messages.
 *
 * A process mostly hears from the same few peers, so the ServerIDs of the routes seen lately are kept in a table of
 * fixed size.  A route has one place in it, and the last one that wanted the place is there: a peer that invents
 * addresses makes this slower, and no larger.
 */
#include "native.h"

static struct known_route *place_of(Addresses *self, const struct route *route)
{
	uint64_t words[sizeof(*route) / sizeof(uint64_t)];
	uint64_t hash = 0;

	memcpy(words, route, sizeof(words));
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15u;
	return &self->known[hash >> 56];
}

static PyObject *new_server_id(Addresses *self, const struct address *address)
{
	PyObject *new = self->server_id_class->tp_alloc(self->server_id_class, 4);
	PyObject *fields[4];
	int failed = 0;

	if (!new)
		return NULL;
	fields[0] = PyLong_FromUnsignedLongLong(address->pid);
	fields[1] = PyLong_FromUnsignedLong(address->task_id);
	fields[2] = PyLong_FromUnsignedLong(address->vnn);
	fields[3] = PyLong_FromUnsignedLongLong(address->unique_id);
	for (int i = 0; i < 4; i++) {
		failed |= !fields[i];
		PyTuple_SET_ITEM(new, i, fields[i]);
	}
	if (failed)
		Py_CLEAR(new);
	return new;
}

/* The place of the route, with its ServerIDs; NULL with an exception if memory is short. */
static struct known_route *known_route(Addresses *self, const struct route *route)
{
	struct known_route *known = place_of(self, route);
	PyObject *dst, *src, *old_dst = known->dst, *old_src = known->src;

	if (known->dst && !memcmp(&known->route, route, sizeof(*route)))
		return known;
	dst = new_server_id(self, &route->dst);
	src = new_server_id(self, &route->src);
	if (!dst || !src) {
		Py_XDECREF(dst);
		Py_XDECREF(src);
		return NULL;
	}
	known->route = *route;
	known->dst = dst;
	known->src = src;
	Py_XDECREF(old_dst);
	Py_XDECREF(old_src);
	return known;
}

PyObject *new_message_of(Addresses *self, const struct route *route, uint32_t type, PyObject *data)
{
	struct known_route *known = known_route(self, route);
	PyObject *message, *type_object;

	if (!known)
		return NULL;
	message = self->message_class->tp_alloc(self->message_class, 5);
	type_object = PyLong_FromUnsignedLong(type);
	if (!message || !type_object) {
		Py_XDECREF(message);
		Py_XDECREF(type_object);
		return NULL;
	}
	PyTuple_SET_ITEM(message, 0, type_object);
	PyTuple_SET_ITEM(message, 1, Py_NewRef(known->src));
	PyTuple_SET_ITEM(message, 2, Py_NewRef(known->dst));
	PyTuple_SET_ITEM(message, 3, Py_NewRef(data));
	PyTuple_SET_ITEM(message, 4, Py_NewRef(self->no_fds));
	return message;
}

PyObject *new_message(Addresses *self, const struct route *route, uint32_t type, const char *data, Py_ssize_t length)
{
	PyObject *copy = PyBytes_FromStringAndSize(data, length);
	PyObject *message = copy ? new_message_of(self, route, type, copy) : NULL;

	Py_XDECREF(copy);
	return message;
}

static int read_u64(PyObject *number, uint64_t *out)
{
	if (!PyLong_Check(number))
		return -1;
	*out = PyLong_AsUnsignedLongLong(number);
	if (*out == UINT64_MAX && PyErr_Occurred()) {
		PyErr_Clear();
		return -1;
	}
	return 0;
}

int read_u32(PyObject *number, uint32_t *out)
{
	uint64_t value;

	if (read_u64(number, &value) || value > UINT32_MAX)
		return -1;
	*out = (uint32_t)value;
	return 0;
}

int read_address(PyTypeObject *server_id_class, PyObject *address, struct address *out)
{
	if (!Py_IS_TYPE(address, server_id_class) || PyTuple_GET_SIZE(address) != 4)
		return -1;
	if (read_u64(PyTuple_GET_ITEM(address, 0), &out->pid) || read_u32(PyTuple_GET_ITEM(address, 1), &out->task_id) ||
	    read_u32(PyTuple_GET_ITEM(address, 2), &out->vnn) || read_u64(PyTuple_GET_ITEM(address, 3), &out->unique_id))
		return -1;
	return 0;
}

/* A tuple class whose instances hold nothing but their items, as those of a NamedTuple do. */
static int is_plain_tuple_class(PyObject *cls)
{
	return PyType_Check(cls) && PyType_IsSubtype((PyTypeObject *)cls, &PyTuple_Type) &&
	       ((PyTypeObject *)cls)->tp_basicsize == PyTuple_Type.tp_basicsize &&
	       ((PyTypeObject *)cls)->tp_itemsize == PyTuple_Type.tp_itemsize;
}

static PyObject *addresses_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	PyObject *message_class, *server_id_class;
	Addresses *self;

	if (kwargs && PyDict_GET_SIZE(kwargs)) {
		PyErr_SetString(PyExc_TypeError, "Addresses takes no keywords");
		return NULL;
	}
	if (!PyArg_ParseTuple(args, "OO:Addresses", &message_class, &server_id_class))
		return NULL;
	if (!is_plain_tuple_class(message_class) || !is_plain_tuple_class(server_id_class)) {
		PyErr_SetString(PyExc_TypeError, "Message and ServerID must be named tuples");
		return NULL;
	}
	self = (Addresses *)type->tp_alloc(type, 0); /* all zero */
	if (!self)
		return NULL;
	self->message_class = (PyTypeObject *)Py_NewRef(message_class);
	self->server_id_class = (PyTypeObject *)Py_NewRef(server_id_class);
	self->no_fds = PyTuple_New(0);
	if (!self->no_fds)
		Py_CLEAR(self);
	return (PyObject *)self;
}

static void addresses_dealloc(Addresses *self)
{
	for (int i = 0; i < KNOWN_ROUTES; i++) {
		Py_XDECREF(self->known[i].dst);
		Py_XDECREF(self->known[i].src);
	}
	Py_XDECREF(self->message_class);
	Py_XDECREF(self->server_id_class);
	Py_XDECREF(self->no_fds);
	Py_TYPE(self)->tp_free((PyObject *)self);
}

PyTypeObject AddressesType = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "msgd._native.Addresses",
	.tp_doc = "Makes Messages; remembers the addresses seen lately.",
	.tp_basicsize = sizeof(Addresses),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = addresses_new,
	.tp_dealloc = (destructor)addresses_dealloc,
};
