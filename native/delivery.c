/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * Deliverer: runs the handlers of the messages at the head of an inbox, as long as they are plain.
 *
 * It does what the loop of Delivery.run() does (msgd/messaging/handlers.py), for a message to a context of this process
 * that has a handler for its type, without descriptors, and while nobody observes or expects an answer to that context.
 * A broadcast is such a message too, where one context listens to its class.
 * It stops at the first message that is anything else, and leaves it in the inbox.
 *
 * A message leaves the inbox right before its handler is called, with no Python code in between.
 */
#include "native.h"

enum { RECEIVED, RECEIVED_BYTES, HANDLED, OBSERVER, CONTEXTS, UNIQUE_IDS, PID, BROADCAST, ONLY_GENERAL,
       ONLY_PUBSUB, DELIVERY_SLOTS };
static const char *const delivery_names[] = {"received",    "received_bytes", "handled",    "observer", "_contexts",
					     "_unique_ids", "_pid",	      "_broadcast", "_only_general",
					     "_only_pubsub"};

enum { REGISTERED, DEFAULTS, EXPECTED, TABLE_SLOTS };
static const char *const table_names[] = {"registered", "defaults", "expected"};

typedef struct {
	PyObject_HEAD
	PyTypeObject *delivery_class;
	PyTypeObject *table_class;
	PyTypeObject *message_class;
	PyTypeObject *server_id_class;
	Py_ssize_t delivery[DELIVERY_SLOTS];
	Py_ssize_t table[TABLE_SLOTS];
	PyObject *handlers_name;
	PyObject *failed_name;
} Deliverer;

/* Add to a counter that is an int in a slot; -1 with an exception. */
static int count(PyObject *delivery, Py_ssize_t offset, Py_ssize_t number)
{
	PyObject *before = *slot(delivery, offset), *added, *after;

	if (!before)
		return 0;
	added = PyLong_FromSsize_t(number);
	after = added ? PyNumber_Add(before, added) : NULL;
	Py_XDECREF(added);
	if (!after)
		return -1;
	set_slot(delivery, offset, after);
	return 0;
}

/* The handlers in one of the table's dicts; NULL if there are none.  Borrowed. */
static PyObject *handlers_in(PyObject *dict, PyObject *type)
{
	PyObject *found = dict && PyDict_Check(dict) ? PyDict_GetItemWithError(dict, type) : NULL;

	return found && PyTuple_Check(found) && PyTuple_GET_SIZE(found) ? found : NULL;
}

/* The handlers of the context for the type, a new reference; NULL, perhaps with an exception, if it is not plain. */
static PyObject *find_handlers(Deliverer *self, PyObject *context, PyObject *type)
{
	PyObject *table = PyObject_GetAttr(context, self->handlers_name), *handlers = NULL, *expected;

	if (table && Py_IS_TYPE(table, self->table_class)) {
		expected = *slot(table, self->table[EXPECTED]);
		if (expected && PyDict_Check(expected) && !PyDict_GET_SIZE(expected)) {
			handlers = handlers_in(*slot(table, self->table[REGISTERED]), type);
			if (!handlers && !PyErr_Occurred())
				handlers = handlers_in(*slot(table, self->table[DEFAULTS]), type);
			Py_XINCREF(handlers);
		}
	}
	Py_XDECREF(table);
	return handlers;
}

#define PUBSUB_BLOCK 0x6D7370

/* The slot with the only listener to the class of a type, -1 for a class without: _addressed() in handlers.py. */
static int listener_slot(PyObject *type)
{
	uint32_t number;

	if (read_u32(type, &number) || (number >> 8 >= 1 && number >> 8 <= 4))
		return -1;
	return number >> 8 == PUBSUB_BLOCK ? ONLY_PUBSUB : ONLY_GENERAL;
}

/* Have the broadcast addressed to the task that alone listens to its class, if there is one; -1 with an exception. */
static int address_broadcast(Deliverer *self, PyObject *delivery, PyObject **message)
{
	int listener = listener_slot(PyTuple_GET_ITEM(*message, 0));
	PyObject *task = listener < 0 ? NULL : *slot(delivery, self->delivery[listener]);
	PyObject *before = PyTuple_GET_ITEM(*message, 2), *dst, *addressed;

	if (*slot(delivery, self->delivery[BROADCAST]) != Py_None || !task || task == Py_None)
		return 0;
	dst = self->server_id_class->tp_alloc(self->server_id_class, 4);
	addressed = dst ? self->message_class->tp_alloc(self->message_class, 5) : NULL;
	if (!addressed) {
		Py_XDECREF(dst);
		return -1;
	}
	for (int i = 0; i < 4; i++)
		PyTuple_SET_ITEM(dst, i, Py_NewRef(i == 1 ? task : PyTuple_GET_ITEM(before, i)));
	for (int i = 0; i < 5; i++)
		PyTuple_SET_ITEM(addressed, i, i == 2 ? dst : Py_NewRef(PyTuple_GET_ITEM(*message, i)));
	Py_SETREF(*message, addressed);
	return 0;
}

/*
 * The handlers of a plain message, a new reference; NULL, perhaps with an exception, if it is not plain.  A broadcast
 * is replaced by the message to the context.
 */
static PyObject *handlers_of(Deliverer *self, PyObject *delivery, PyObject **place)
{
	PyObject *message = *place;
	PyObject *contexts = *slot(delivery, self->delivery[CONTEXTS]);
	PyObject *unique_ids = *slot(delivery, self->delivery[UNIQUE_IDS]);
	PyObject *own_pid = *slot(delivery, self->delivery[PID]);
	PyObject *dst, *context, *handlers;
	uint32_t task_id;

	if (*slot(delivery, self->delivery[OBSERVER]) != Py_None || !contexts || !unique_ids || !own_pid)
		return NULL;
	if (!Py_IS_TYPE(message, self->message_class) || PyTuple_GET_SIZE(message) != 5)
		return NULL;
	dst = PyTuple_GET_ITEM(message, 2);
	if (PyTuple_GET_ITEM(message, 4) != NULL && PyObject_IsTrue(PyTuple_GET_ITEM(message, 4)))
		return NULL;
	if (!Py_IS_TYPE(dst, self->server_id_class) || PyTuple_GET_SIZE(dst) != 4 || !PyDict_Check(contexts) ||
	    !PyBytes_Check(PyTuple_GET_ITEM(message, 3)))
		return NULL;
	if (PySequence_Contains(unique_ids, PyTuple_GET_ITEM(dst, 3)) != 1 ||
	    PyObject_RichCompareBool(PyTuple_GET_ITEM(dst, 0), own_pid, Py_EQ) != 1)
		return NULL;
	if (!read_u32(PyTuple_GET_ITEM(dst, 1), &task_id) && task_id == EVERY_TASK) {
		if (address_broadcast(self, delivery, place))
			return NULL;
		message = *place;
		dst = PyTuple_GET_ITEM(message, 2);
	}
	context = PyDict_GetItemWithError(contexts, PyTuple_GET_ITEM(dst, 1));
	if (!context)
		return NULL;
	Py_INCREF(context);
	handlers = find_handlers(self, context, PyTuple_GET_ITEM(message, 0));
	Py_DECREF(context);
	return handlers;
}

/* Have the failure of a handler logged, if it is an Exception; -1 if something is raised. */
static int note_failure(Deliverer *self, PyObject *delivery, PyObject *message)
{
	PyObject *type, *error, *traceback, *done;

	if (!PyErr_ExceptionMatches(PyExc_Exception))
		return -1;
	PyErr_Fetch(&type, &error, &traceback);
	PyErr_NormalizeException(&type, &error, &traceback);
	if (traceback)
		PyException_SetTraceback(error, traceback);
	done = PyObject_CallMethodObjArgs(delivery, self->failed_name, message, error, NULL);
	Py_XDECREF(type);
	Py_XDECREF(error);
	Py_XDECREF(traceback);
	Py_XDECREF(done);
	return done ? 0 : -1;
}

static int run_handlers(Deliverer *self, PyObject *delivery, PyObject *handlers, PyObject *message)
{
	for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(handlers); i++) {
		PyObject *done = PyObject_CallOneArg(PyTuple_GET_ITEM(handlers, i), message);

		Py_XDECREF(done);
		if (!done && note_failure(self, delivery, message))
			return -1;
	}
	return 0;
}

/* Whether the message is still there; the search for its handlers may have run Python code, and that a signal's. */
static int is_head(PyObject *inbox, PyObject *message)
{
	Py_ssize_t left = PyObject_Size(inbox);
	PyObject *head = left > 0 ? PySequence_GetItem(inbox, 0) : NULL;

	Py_XDECREF(head);
	return left > 0 && !head ? -1 : head == message;
}

/* Deliver the message at the head of the inbox.  Returns 1; 0 if it is not plain; -1 with an exception. */
static int deliver_one(Deliverer *self, PyObject *delivery, PyObject *inbox, PyObject *popleft)
{
	PyObject *head = PySequence_GetItem(inbox, 0), *message = Py_XNewRef(head);
	PyObject *handlers = message ? handlers_of(self, delivery, &message) : NULL, *popped;
	int result = -1, is_there = handlers ? is_head(inbox, head) : 0;

	Py_XDECREF(head);
	if (is_there <= 0) {
		Py_XDECREF(handlers);
		Py_XDECREF(message);
		return PyErr_Occurred() ? -1 : handlers != NULL;
	}
	if (!count(delivery, self->delivery[RECEIVED], 1) && !count(delivery, self->delivery[HANDLED], 1) &&
	    !count(delivery, self->delivery[RECEIVED_BYTES], PyBytes_GET_SIZE(PyTuple_GET_ITEM(message, 3)))) {
		popped = PyObject_CallNoArgs(popleft);
		if (popped && !run_handlers(self, delivery, handlers, message))
			result = 1;
		Py_XDECREF(popped);
	}
	Py_DECREF(handlers);
	Py_DECREF(message);
	return result;
}

static PyObject *deliverer_run(Deliverer *self, PyObject *const *args, Py_ssize_t number)
{
	PyObject *popleft;
	int result = 1;

	if (number != 2 || !Py_IS_TYPE(args[0], self->delivery_class)) {
		PyErr_SetString(PyExc_TypeError, "run(delivery, inbox)");
		return NULL;
	}
	popleft = PyObject_GetAttrString(args[1], "popleft");
	if (!popleft)
		return NULL;
	while (result == 1) {
		Py_ssize_t left = PyObject_Size(args[1]);

		if (left <= 0) {
			result = left ? -1 : 0;
			break;
		}
		result = deliver_one(self, args[0], args[1], popleft);
	}
	Py_DECREF(popleft);
	return result < 0 ? NULL : Py_NewRef(Py_None);
}

static int get_offsets(PyObject *cls, const char *const *names, int number, Py_ssize_t *offsets)
{
	for (int i = 0; i < number; i++) {
		offsets[i] = slot_offset(cls, names[i]);
		if (offsets[i] < 0)
			return -1;
	}
	return 0;
}

static PyObject *deliverer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	PyObject *delivery, *table, *message, *server_id;
	Deliverer *self;

	(void)kwargs;
	if (!PyArg_ParseTuple(args, "O!O!O!O!:Deliverer", &PyType_Type, &delivery, &PyType_Type, &table, &PyType_Type,
			      &message, &PyType_Type, &server_id))
		return NULL;
	self = (Deliverer *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->delivery_class = (PyTypeObject *)Py_NewRef(delivery);
	self->table_class = (PyTypeObject *)Py_NewRef(table);
	self->message_class = (PyTypeObject *)Py_NewRef(message);
	self->server_id_class = (PyTypeObject *)Py_NewRef(server_id);
	self->handlers_name = PyUnicode_InternFromString("handlers");
	self->failed_name = PyUnicode_InternFromString("note_failure");
	if (!self->handlers_name || !self->failed_name ||
	    get_offsets(delivery, delivery_names, DELIVERY_SLOTS, self->delivery) ||
	    get_offsets(table, table_names, TABLE_SLOTS, self->table))
		Py_CLEAR(self);
	return (PyObject *)self;
}

static void deliverer_dealloc(Deliverer *self)
{
	Py_XDECREF(self->delivery_class);
	Py_XDECREF(self->table_class);
	Py_XDECREF(self->message_class);
	Py_XDECREF(self->server_id_class);
	Py_XDECREF(self->handlers_name);
	Py_XDECREF(self->failed_name);
	Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef deliverer_methods[] = {
	{"run", (PyCFunction)(void (*)(void))deliverer_run, METH_FASTCALL,
	 "run(delivery, inbox): deliver the plain messages at the head of the inbox."},
	{NULL, NULL, 0, NULL},
};

PyTypeObject DelivererType = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "msgd._native.Deliverer",
	.tp_doc = "Runs the handlers of plain messages.",
	.tp_basicsize = sizeof(Deliverer),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = deliverer_new,
	.tp_dealloc = (destructor)deliverer_dealloc,
	.tp_methods = deliverer_methods,
};
